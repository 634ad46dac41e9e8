"""Logits that define no distribution are refused with their position; tokens that a model excludes are not such logits."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.model_pairs import decoded
from helpers.random_models import PIECES, letter_engine

from cards import CARDS, Decoder, Entropy
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.errors import ModelError
from cards.methods import ARGS, CDSL, SIA, SSS, ContrastiveDecoding, ContrastiveDecodingLogits, GenARM, Vanilla
from cards.methods.base import Method
from cards.testing import check_law, normalised

BROKEN = "The logits of token 3 of the response have no finite maximum"


def breaking(bad: float) -> MockEngine:
    """Computes `bad` among the logits of the third token."""
    return MockEngine(lambda ids: [0.0, 1.0, bad if len(ids) == 3 else 0.5, -9.0], "abc$", end="$", logits=True)


def sound() -> MockEngine:
    return MockEngine(lambda ids: [0.0, 1.0, 0.5, -99.0], "abc$", end="$", logits=True)


BOUNDARY = Entropy(1, 8, 0.0, "mcp")
METHODS: dict[str, Callable[[], Method]] = {
    "vanilla": Vanilla,
    "vanilla, greedy": lambda: Vanilla(temperature=0.0),
    "cards": lambda: CARDS(target=0.0),
    "cards, by uncertainty": lambda: CARDS(target=0.0, boundary=BOUNDARY),
    "args": lambda: ARGS(chunk=None),
    "sia": lambda: SIA(chunk=None),
    "genarm": lambda: GenARM(guides=(sound(),)),
    "contrastive": lambda: ContrastiveDecoding(amateur=sound()),
    "cdsl": lambda: CDSL(proposer=sound(), target=0.0),
    "sss": lambda: SSS(aligned=sound(), reference=sound()),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", METHODS)
def test_methods_refuse_invalid_logits(name: str, bad: float) -> None:
    decoder = Decoder(breaking(bad), lambda prompt, response: 1.0, METHODS[name]())
    for seed in range(4):
        with pytest.raises(ModelError, match=BROKEN):
            decoder("a", seed=seed, max_tokens=8)


@pytest.mark.parametrize("pair", [(breaking(math.nan), sound()), (sound(), breaking(math.nan))], ids=["target", "draft"])
def test_speculation_refuses_invalid_logits(pair: tuple[MockEngine, MockEngine]) -> None:
    with pytest.raises(ModelError, match=BROKEN):
        Decoder(SpeculativeEngine(*pair), None, Vanilla())("a", max_tokens=8)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_a_request_with_invalid_logits_fails_alone(temperature: float) -> None:
    engine: Any = letter_engine(slots=4)
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[PIECES.index("c")] = math.nan  # after a c the model computes NaN
    decoder = Decoder(engine, None, Vanilla(temperature=temperature, top_k=5))
    alone = await decoder.agenerate("ab", seed=3, max_tokens=1)
    good, bad = await asyncio.gather(
        decoder.agenerate("ab", seed=3, max_tokens=1), decoder.agenerate("acb", max_tokens=4), return_exceptions=True
    )
    assert good.text == alone.text  # type: ignore[union-attr]
    assert isinstance(bad, ModelError)
    assert "logits of token 1 of the response" in str(bad)
    await decoder.aclose()


LM, OTHER = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.0, 0.5, 0.4, 0.1])  # the other model excludes the first token


def one_token(p: np.ndarray) -> MockEngine:
    return MockEngine(lambda ids: p.tolist(), "abc$", end="$")


EXCLUDED: dict[str, tuple[Callable[[], Method], list[float]]] = {
    "contrastive": (lambda: ContrastiveDecoding(amateur=one_token(OTHER), temperature=1.0), [1, 0, 0, 0]),
    "contrastive, logits": (lambda: ContrastiveDecodingLogits(amateur=one_token(OTHER), temperature=1.0), [1, 0, 0, 0]),
    "contrastive, weight 0": (
        lambda: ContrastiveDecodingLogits(amateur=one_token(OTHER), weight=0.0, plausibility=0.4, temperature=1.0),
        [4 / 9, 3 / 9, 2 / 9, 0],
    ),
    "guide": (
        lambda: GenARM(guides=(one_token(OTHER),), weights=(0.01,), temperature=1.0, top_k=None),
        [0, *(LM * OTHER**0.01)[1:]],
    ),
    "guide of weight 0": (lambda: GenARM(guides=(one_token(OTHER),), weights=(0.0,), temperature=1.0), LM.tolist()),
    "guide of negative weight": (
        lambda: GenARM(guides=(one_token(OTHER),), weights=(-1.0,), temperature=1.0),
        [1, 0, 0, 0],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXCLUDED)
def test_tokens_that_another_model_excludes_follow_the_law_of_the_formula(name: str) -> None:
    make, weights = EXCLUDED[name]
    law: dict[tuple[int, ...], float] = {(i,): p for i, p in normalised(dict(enumerate(weights))).items() if p}
    draws = Counter(r.token_ids for r in decoded(Decoder(one_token(LM), None, make()), 2500, max_tokens=1))
    if len(law) == 1:
        assert set(draws) == set(law)
    else:
        wrong: dict[tuple[int, ...], float] = {(i,): float(p) for i, p in enumerate(OTHER)}
        check_law(draws, law, wrong=wrong)

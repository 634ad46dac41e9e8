"""Rewards from LMs in GGUF files, and drafts across back ends, equal those of the same models in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cards import CARDS, Decoder
from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.registry import load_engine, load_reward, make_method
from cards.usage import track_usage

QUESTION: Any = [{"role": "user", "content": "How was the film?"}]
TEXTS = ("", " I loved it", " It was bad and long.\n\n", " I loved the music")
KINDS = ["implicit:{aligned},{lm}", "self-evaluation:{lm}", "value:{lm}", "steps:{lm}"]
OPTIONS: dict[str, Any] = {"dtype": "float32", "threads": 1}


@pytest.fixture(scope="module")
def files(gguf_folder: Path) -> dict[str, str]:
    return {name: str(gguf_folder / f"{name}.gguf") for name in ("lm", "aligned", "draft")}


def inputs(engine: Engine) -> tuple[Prompt, list[Response]]:
    return engine.encode(QUESTION), [Response(text, engine.tokenize(text)) for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
async def test_rewards_from_lms_equal_those_of_transformers(kind: str, files: dict[str, str], tiny: TransformersEngine) -> None:
    names = {"lm": "tiny", "aligned": "tiny-aligned"}
    found, wanted = load_reward(kind.format(**files), **OPTIONS), load_reward(kind.format(**names), **OPTIONS)
    prompt, responses = inputs(tiny)
    scores, costs = [], []
    for reward in (found, wanted):
        with track_usage() as usage:
            followers = [Response(" I", tiny.tokenize(" I")), Response(" The", tiny.tokenize(" The"))]
            scores.append([*await reward.score(prompt, responses), *await reward.score_next(prompt, Response(), followers)])
        # how many tokens come from the cache depends on the rows that share a step
        costs.append((usage.rm_calls, usage.rm_tokens + usage.rm_cached_tokens, usage.flops / usage.rm_tokens))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert costs[0] == costs[1]
    await found.aclose()


@pytest.mark.parametrize(("target", "draft"), [("lm", "draft"), ("lm", "tiny-draft"), ("tiny", "draft")])
async def test_a_draft_of_either_back_end_gives_the_text_of_any_other(
    target: str, draft: str, files: dict[str, str], tiny: TransformersEngine
) -> None:
    """A draft of the other back end proposes the same tokens, so the text is that of the pair in transformers."""
    mixed = load_engine(files.get(target, target), draft=files.get(draft, draft), **OPTIONS)
    same = load_engine("tiny", draft="tiny-draft", **OPTIONS)
    for seed in range(4):
        texts = [
            (await Decoder(engine, "tiny", CARDS(max_rejections=4)).agenerate(QUESTION, max_tokens=24, seed=seed)).text
            for engine in (mixed, same)
        ]
        assert texts[0] == texts[1]
    greedy = [
        (await Decoder(engine, method=make_method("vanilla", temperature=0.0)).agenerate(QUESTION, max_tokens=24, seed=0)).text
        for engine in (mixed, tiny)
    ]
    assert greedy[0] == greedy[1]
    await mixed.aclose()

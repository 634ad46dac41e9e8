"""A draft that writes tokens ahead: speculative, sss, and CARDS with a draft."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import END, LETTERS, Ids, next_token, value
from helpers.model_pairs import Model, decoded, engine, other, texts, value_of
from numpy.typing import NDArray
from scipy.special import softmax

from cards import CARDS, Decoder, Entropy, FixedLength, Result
from cards.engines.mock import MockEngine
from cards.engines.speculative import SpeculativeEngine
from cards.methods import SSS, Vanilla
from cards.rewards import FunctionReward
from cards.sampling import Sampling
from cards.testing import check_law, normalised

pytestmark = pytest.mark.slow

Floats = NDArray[np.float64]

# speculative


def test_speculative_is_vanilla_in_law_and_equals_it_with_an_equal_draft() -> None:
    draws = decoded(
        Decoder(SpeculativeEngine(engine(), engine(other(3)), 2), None, Vanilla(temperature=1.0, top_k=None, chunk=3)),
        700,
        max_tokens=4,
    )
    check_law(Counter(r.token_ids for r in draws), texts(next_token, 4), wrong=texts(other(3), 4))
    method = Vanilla(temperature=0.9, top_k=3)
    same = Decoder(SpeculativeEngine(engine(), engine()), None, method)
    plain = Decoder(engine(), None, method)
    for seed in range(20):
        ours, theirs = same("a", seed=seed, max_tokens=40), plain("a", seed=seed, max_tokens=40)
        assert ours.segments == theirs.segments
        assert ours.usage.lm_decoded_tokens == theirs.usage.lm_decoded_tokens == len(ours.token_ids)
        assert ours.usage.lm_wasted_tokens == 0


# sss


def tempered(p: Sequence[float], temperature: float) -> Floats:
    weights: Floats = np.array(p) ** (1 / temperature)
    weights /= weights.sum()
    return weights


def cut(p: Sequence[float], sampling: Sampling) -> Floats:
    weights = tempered(p, sampling.temperature)
    if sampling.top_k:
        weights[weights < np.sort(weights)[-sampling.top_k]] = 0
    weights /= weights.sum()
    return weights


def sss_law(test: str, sampling: Sampling) -> Model:
    def law(ids: Ids) -> list[float]:
        pi, pi_a, pi_s = (
            cut(next_token(ids), sampling),
            cut(other(5)(ids), sampling),
            tempered(other(6)(ids), sampling.temperature),
        )
        aim = pi * pi_a / pi_s / (pi * pi_a / pi_s).sum()
        if test == "exact":
            return [float(x) for x in aim]
        ratio = pi / (pi_s if test == "paper" else np.maximum(pi_a, 1e-300))
        accepted = pi_a * np.minimum(1, ratio)
        weights = pi_a * (ratio - 1).clip(0) if test == "paper" else aim
        if not weights.any():
            weights = pi
        return [float(x) for x in accepted + (1 - accepted.sum()) * weights / weights.sum()]

    return law


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=3)], ids=str)
@pytest.mark.parametrize("test", ["exact", "paper", "repository"])
def test_sss_follows_the_law_it_states(test: Any, sampling: Sampling) -> None:
    settings: dict[str, Any] = {"temperature": sampling.temperature, "top_k": sampling.top_k, "test": test, "chunk": None}
    for lookahead in (1, 3):
        method = SSS(aligned=engine(other(5)), reference=engine(other(6)), lookahead=lookahead, **settings)
        draws = Counter(r.token_ids for r in decoded(Decoder(engine(), None, method), 900, max_tokens=3))
        wrong = sss_law("exact" if test == "paper" else "paper", sampling)
        check_law(draws, texts(sss_law(test, sampling), 3), wrong=texts(wrong, 3))


def test_the_exact_test_of_sss_samples_its_aim_and_accepts_more_than_the_published_code() -> None:
    """Tokens of any triple of models: the law is the aim, as that of GenARM with the weights 1 and -1."""
    generator = np.random.default_rng(1)
    rates: dict[str, list[float]] = {"exact": [], "paper": [], "repository": []}
    for _ in range(200):
        base = generator.normal(0, 1.5, 20)
        pi, pi_s = (softmax(base + generator.normal(0, 0.7, 20)) for _ in range(2))
        pi_a = pi_s * np.exp(generator.normal(0, 1, 20))
        pi_a /= pi_a.sum()
        aim = pi * pi_a / pi_s / (pi * pi_a / pi_s).sum()
        for test, found in rates.items():
            accepted, proposed, weights = SSS(test=test).shifted(pi, pi_a, pi_s)  # type: ignore[arg-type]
            kept = pi_a * np.minimum(1, accepted / proposed)
            law = kept + (1 - kept.sum()) * weights / weights.sum()
            assert np.allclose(law, aim) == (test == "exact")
            found.append(float(kept.sum()))
    assert np.mean(rates["exact"]) > np.mean(rates["repository"]) + 0.1


def test_sss_does_not_depend_on_lookahead_and_reads_the_reference_once_a_round() -> None:
    def run(lookahead: int, aligned: Model, reference: Model) -> Result:
        models: dict[str, Any] = {"aligned": engine(aligned, False), "reference": engine(reference, False)}
        method = SSS(temperature=1.0, top_k=None, **models, lookahead=lookahead, chunk=None)
        return Decoder(engine(end=False), None, method)("a", max_tokens=12, seed=3)

    assert len({run(lookahead, other(5), other(6)).text for lookahead in (1, 2, 3, 7)}) == 1
    kept = run(4, next_token, next_token).usage  # aim and draft are the LM
    assert (kept.lm_steps, kept.draft_steps, kept.draft_decoded_tokens) == (3, 12 + 3, 12)


def test_sss_draws_from_the_lm_where_no_token_is_left() -> None:
    def one_hot(token: int) -> Model:
        return lambda ids: [float(i == token) for i in range(4)]

    method = SSS(temperature=1.0, top_k=None, aligned=engine(one_hot(1)), reference=engine(one_hot(1)))
    assert Decoder(engine(one_hot(2)), None, method)("a", max_tokens=5).text == "ccccc"


def test_sss_ends_where_the_shortest_context_does() -> None:
    short = MockEngine(next_token, LETTERS, context=6)
    result = Decoder(engine(end=False), None, SSS(aligned=short, reference=engine(end=False)))("a", max_tokens=20)
    assert (len(result.token_ids), result.finish_reason) == (5, "length")


# cards with a draft


def test_cards_with_a_draft_accepts_segments_by_the_same_law() -> None:
    settings: dict[str, Any] = {
        "target": 1.0,
        "beta": 0.5,
        "temperature": 1.0,
        "top_k": None,
        "width": 3,
        "max_rejections": 40,
    }
    method = CARDS(**settings, boundary=FixedLength(2, 2))
    drafted = SpeculativeEngine(engine(), engine(other(3)), 2)
    draws = decoded(Decoder(drafted, FunctionReward(value_of), method), 700, max_tokens=2)
    assert not any(r.usage.fallbacks for r in draws)
    q = texts(next_token, 2)

    def passing(ids: Ids) -> float:
        text = "".join(LETTERS[t] for t in ids if t != END)
        return math.exp(min(0.0, (value(text) - min(1.0, 0.5 + len(ids) * 0.25)) / 0.5))

    check_law(Counter(r.token_ids for r in draws), normalised({s: p * passing(s) for s, p in q.items()}), wrong=q)


def test_cards_with_an_equal_draft_gives_its_own_segments_in_fewer_steps() -> None:
    alone = CARDS(target=1.5, beta=0.5, alpha=0.8, boundary=Entropy(2, 6, 1.2), width=1)
    reward, steps = FunctionReward(value_of), Counter[str]()
    for seed in range(15):
        plain = Decoder(engine(), reward, alone)("a", max_tokens=16, seed=seed)
        ours = Decoder(SpeculativeEngine(engine(), engine(), 3), reward, alone)("a", max_tokens=16, seed=seed)
        assert [replace(s, entropy=None) for s in ours.segments] == [replace(s, entropy=None) for s in plain.segments]
        assert ours.usage.lm_wasted_tokens == plain.usage.lm_wasted_tokens
        steps.update(plain=plain.usage.lm_steps, ours=ours.usage.lm_steps)
    assert steps["ours"] < 0.7 * steps["plain"]
    assert CARDS().needed == CARDS.needs

"""The methods sample what their formulas say: on a small vocabulary every segment is enumerated and the law is exact."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import (
    BETA,
    BY_ENTROPY,
    END,
    TARGET,
    Ids,
    Law,
    at_uncertain,
    cards,
    first_segments,
    next_token,
    passing,
    reading,
    results,
    segments,
    threshold,
    value,
)

from cards import FixedLength
from cards.methods import BestOfN, RejectionSampling, Vanilla
from cards.testing import check_law, normalised

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("width", [1, 3])
def test_accepted_segments_of_one_length_follow_q_times_exp_min_r_tau(width: int) -> None:
    q = segments(2)
    tau = threshold(2, 2)
    law = normalised({s: p * math.exp(min(value(reading(s)), tau) / BETA) for s, p in q.items() if len(s) == 2})
    found = first_segments(results(cards(FixedLength(2, 2), width=width, max_rejections=40), 2))
    two = Counter({s: n for s, n in found.items() if len(s) == 2})
    check_law(two, law, wrong=normalised({s: p for s, p in q.items() if len(s) == 2}))


def test_accepted_segments_cut_by_entropy_follow_q_times_their_chance_to_pass() -> None:
    """With lengths that differ the threshold differs too: the weight is min(1, exp((r - tau(t)) / beta))."""
    q = segments(6, ends=at_uncertain)
    assert {len(s) for s in q} == {1, 2, 3}
    law = normalised({s: p * passing(s, threshold(len(s), 6)) for s, p in q.items()})
    found = first_segments(results(cards(BY_ENTROPY, max_rejections=40), 6, segments=1))
    check_law(found, law, wrong=q)


def test_hard_acceptance_follows_q_where_the_reward_reaches_the_threshold() -> None:
    q = segments(6, ends=at_uncertain)
    law = normalised({s: p * (value(reading(s)) >= threshold(len(s), 6)) for s, p in q.items()})
    found = first_segments(results(cards(BY_ENTROPY, acceptance="hard", max_rejections=40), 6, segments=1))
    check_law(found, law, wrong=q)


def test_whole_answers_follow_the_product_of_the_laws_of_their_segments() -> None:
    length = 3
    law: Law = {}

    def grow(prefix: Ids, p: float) -> None:
        if prefix and (prefix[-1] == END or len(prefix) == length):
            law[prefix] = law.get(prefix, 0.0) + p
            return
        q = segments(1, after=prefix)
        tilted = normalised({s: w * passing(prefix + s, threshold(len(prefix + s), length)) for s, w in q.items()})
        for segment, w in tilted.items():
            grow(prefix + segment, p * w)

    grow((), 1.0)
    found = results(cards(FixedLength(1, 1), max_rejections=60), length)
    assert not any(s.fallback for r in found for s in r.segments)
    assert max(len(r.segments) for r in found) == length
    q = segments(length)
    check_law(Counter(r.token_ids for r in found), law, wrong=q)


def test_number_of_candidates_and_fallbacks_follow_the_geometric_law() -> None:
    q, tau, limit = segments(2), 1.6, 5
    p = sum(w * passing(s, tau) for s, w in q.items())
    assert 0.1 < p < 0.5
    found = [r.segments[0] for r in results(cards(FixedLength(2, 2), target=tau, alpha=1.0, max_rejections=limit), 2)]
    observed = Counter(s.candidates for s in found if not s.fallback)
    observed[limit + 1] = sum(s.fallback for s in found)
    assert all(s.candidates == limit + 1 for s in found if s.fallback)
    law = {k: p * (1 - p) ** (k - 1) for k in range(1, limit + 1)} | {limit + 1: (1 - p) ** limit}
    wrong = {k: 1.3 * p * (1 - 1.3 * p) ** (k - 1) for k in range(1, limit + 1)} | {limit + 1: (1 - 1.3 * p) ** limit}
    check_law(observed, law, wrong=wrong)
    mean = (1 - (1 - p) ** (limit + 1)) / p
    spread = float(np.std([s.candidates for s in found])) / math.sqrt(len(found))
    assert abs(float(np.mean([s.candidates for s in found])) - mean) < 4 * spread


def test_fallbacks_are_the_best_of_the_rejected_and_one_more() -> None:
    """P(best <= r) = F_rejected(r)^limit F_q(r): the last candidate is drawn, but not tested."""
    q, tau, limit = segments(2), 2.5, 3
    refused = normalised({s: w * (1 - passing(s, tau)) for s, w in q.items()})
    law = best_law([refused] * limit + [q])
    found = [r.segments[0] for r in results(cards(FixedLength(2, 2), target=tau, alpha=1.0, max_rejections=limit), 2)]
    observed = Counter(reading(s.token_ids) for s in found if s.fallback)
    assert observed.total() > 1000
    check_law(observed, law, wrong=best_law([refused] * limit))


def best_law(laws: list[Law]) -> dict[str, float]:
    """Law of the text with the highest reward among one draw from each."""
    texts = sorted({reading(s) for s in laws[0]}, key=value)

    def below(highest: int) -> float:
        return math.prod(sum(p for s, p in law.items() if reading(s) in texts[:highest]) for law in laws)

    return {text: below(i + 1) - below(i) for i, text in enumerate(texts)}


@pytest.mark.parametrize("n", [2, 5])
def test_best_of_n_follows_its_order_statistics(n: int) -> None:
    q = segments(3)
    found = results(BestOfN(n=n, temperature=1.0, top_k=None), 3)
    law, other = best_law([q] * n), best_law([q] * (n + 1))
    check_law(Counter(r.text for r in found), law, wrong=other if n == 2 else best_law([q] * 2))


@pytest.mark.parametrize("width", [1, 4])
def test_item_level_rejection_sampling_follows_q_times_exp_min_r_target(width: int) -> None:
    q = segments(3)
    law = normalised({s: p * math.exp(min(value(reading(s)), TARGET) / BETA) for s, p in q.items()})
    method = RejectionSampling(target=TARGET, beta=BETA, temperature=1.0, top_k=None, max_candidates=60, width=width)
    found = results(method, 3)
    assert not any(r.usage.fallbacks for r in found)
    check_law(Counter(r.token_ids for r in found), law, wrong=q)


@pytest.mark.parametrize("chunk", [None, 2])
def test_vanilla_follows_q(chunk: int | None) -> None:
    q = segments(3)
    found = results(Vanilla(temperature=1.0, top_k=None, chunk=chunk), 3)
    check_law(Counter(r.token_ids for r in found), q, wrong=normalised({s: p**1.3 for s, p in q.items()}))


def test_vanilla_follows_q_under_temperature_and_top_k() -> None:
    def sharper(ids: Ids) -> list[float]:
        p = next_token(ids)
        kept = sorted(p)[-2]
        weights = [x ** (1 / 0.7) if x >= kept else 0.0 for x in p]
        return [w / sum(weights) for w in weights]

    law: Law = {}
    for first, p in enumerate(sharper(())):
        for second, w in enumerate(sharper((first,)) if first != END else [1.0]):
            law[(first, second) if first != END else (first,)] = p * w
    found = results(Vanilla(temperature=0.7, top_k=2), 2)
    check_law(Counter(r.token_ids for r in found), {k: p for k, p in law.items() if p}, wrong=segments(2))


@pytest.mark.parametrize("width", [2, 7, 21, "auto"])
def test_drawing_several_at_once_gives_the_same_text(width: Any) -> None:
    one = cards(BY_ENTROPY, target=1.5, alpha=0.8)
    for alone, several in zip(results(one, 6, 60), results(replace(one, width=width), 6, 60), strict=True):
        assert several.segments == alone.segments
        assert several.usage.candidates == alone.usage.candidates
        assert several.usage.rounds <= alone.usage.rounds

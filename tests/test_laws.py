"""The methods sample what their formulas say: on a small vocabulary every segment is enumerated and the law is exact."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cards import CARDS, Entropy, FixedLength, Result
from cards.boundaries import Boundary
from cards.engines.mock import MockEngine
from cards.events import Fold
from cards.methods import BestOfN, RejectionSampling, Vanilla
from cards.methods.base import Method, Request
from cards.rewards.function import FunctionReward
from cards.usage import Usage, track_usage

LETTERS, END = "abcd", 3
BETA, TARGET = 0.5, 1.0
DRAWS = 3000
Ids = tuple[int, ...]
Law = dict[Ids, float]


@cache
def next_token(ids: Ids) -> tuple[float, ...]:
    """Fixed conditional distributions, some sharp, some flat; `d` ends the answer."""
    p = np.random.default_rng([1, *ids]).dirichlet([1.0, 1.0, 1.0, 0.5])
    return tuple(float(x) for x in p)


@cache
def value(text: str) -> float:
    """A reward for every text, without ties; the bare prompt has 0."""
    return float(np.random.default_rng([2, *text.encode()]).normal()) if text else 0.0


def engine(model: Callable[[Ids], Any] = next_token) -> MockEngine:
    return MockEngine(model, LETTERS, end=LETTERS[END])


def reading(ids: Ids) -> str:
    return "".join(LETTERS[t] for t in ids if t != END)


def entropy(ids: Ids) -> float:
    return -sum(p * math.log(p) for p in next_token(ids) if p > 0)


async def reward_of(prompt: str, response: str) -> float:
    return value(response)


REWARD = FunctionReward(reward_of)


async def decode(method: Method, max_tokens: int, seed: int, segments: int | None) -> Result:
    """What Decoder does for one request, without its task and queue; no further than so many segments."""
    source, usage = engine(), Usage()
    fold = Fold(usage, seed, method.name)
    with track_usage(usage):
        async with aclosing(method.stream(Request(source.encode("?"), max_tokens, seed), source, REWARD)) as events:
            async for event in events:
                fold.add(event)
                if len(fold.segments) == segments:
                    break
    return fold.result()


def results(method: Method, max_tokens: int, draws: int = DRAWS, segments: int | None = None) -> list[Result]:
    async def all_of_them() -> list[Result]:
        return [await decode(method, max_tokens, seed, segments) for seed in range(draws)]

    return asyncio.run(all_of_them())


def segments_after(prefix: Ids, limit: int, ends: Callable[[Ids, Ids], bool]) -> Law:
    """Every segment that can follow, with its probability under the LM; `ends(prefix, segment)` ends it by choice."""
    law: Law = {}

    def grow(segment: Ids, p: float) -> None:
        if segment and (segment[-1] == END or len(segment) == limit or ends(prefix, segment)):
            law[segment] = p
            return
        for token, q in enumerate(next_token(prefix + segment)):
            grow((*segment, token), p * q)

    grow((), 1.0)
    return law


def normalised(weights: Mapping[Ids, float]) -> Law:
    total = sum(weights.values())
    return {key: w / total for key, w in weights.items()}


def p_value(observed: Counter[Any], law: Mapping[Any, float]) -> float:
    """Chi-square of counts against a law; cells that expect fewer than 5 are put together."""
    assert observed.keys() <= {key for key, p in law.items() if p > 0}
    total = observed.total()
    large = [key for key, p in law.items() if p * total >= 5]
    got = [observed[key] for key in large]
    want = [law[key] * total for key in large]
    if (rest := total - sum(want)) > 1:
        got.append(total - sum(got))
        want.append(rest)
    assert len(want) >= 3, "the law has too few cells to be a test"
    return float(stats.chisquare(got, np.array(want) * total / sum(want)).pvalue)


def assert_follows(observed: Counter[Any], law: Mapping[Any, float], not_this: Mapping[Any, float]) -> None:
    """The counts fit the law, and the same test would have refused the other one."""
    assert p_value(observed, law) > 0.001
    assert p_value_or_zero(observed, not_this) < 1e-6


def p_value_or_zero(observed: Counter[Any], law: Mapping[Any, float]) -> float:
    return p_value(observed, law) if observed.keys() <= {k for k, p in law.items() if p > 0} else 0.0


def threshold(tokens: int, max_tokens: int, alpha: float = 0.5) -> float:
    """tau(t) for a bare prompt of reward 0."""
    return min(TARGET, alpha * TARGET + tokens * (1 - alpha) * TARGET / max_tokens)


def passing(ids: Ids, tau: float) -> float:
    return math.exp(min(0.0, (value(reading(ids)) - tau) / BETA))


def cards(boundary: Boundary, **options: Any) -> CARDS:
    settings: dict[str, Any] = {"target": TARGET, "beta": BETA, "temperature": 1.0, "boundary": boundary, "width": 1}
    return CARDS(**(settings | options))


BY_ENTROPY = Entropy(1, 3, 1.1)


def at_uncertain(prefix: Ids, segment: Ids) -> bool:
    return len(segment) == 3 or entropy(prefix + segment) >= 1.1


def first_segments(found: list[Result]) -> Counter[Ids]:
    return Counter(r.segments[0].token_ids for r in found if not r.segments[0].fallback)


@pytest.mark.parametrize("width", [1, 3])
def test_accepted_segments_of_one_length_follow_q_times_exp_min_r_tau(width: int) -> None:
    q = segments_after((), 2, lambda prefix, segment: len(segment) == 2)
    tau = threshold(2, 2)
    law = normalised({s: p * math.exp(min(value(reading(s)), tau) / BETA) for s, p in q.items() if len(s) == 2})
    found = first_segments(results(cards(FixedLength(2, 2), width=width, max_rejections=40), 2))
    two = Counter({s: n for s, n in found.items() if len(s) == 2})
    assert_follows(two, law, normalised({s: p for s, p in q.items() if len(s) == 2}))


def test_accepted_segments_cut_by_entropy_follow_q_times_their_chance_to_pass() -> None:
    """With lengths that differ the threshold differs too: the weight is min(1, exp((r - tau(t)) / beta))."""
    q = segments_after((), 6, at_uncertain)
    assert {len(s) for s in q} == {1, 2, 3}
    law = normalised({s: p * passing(s, threshold(len(s), 6)) for s, p in q.items()})
    found = first_segments(results(cards(BY_ENTROPY, max_rejections=40), 6, segments=1))
    assert_follows(found, law, q)


def test_hard_acceptance_follows_q_where_the_reward_reaches_the_threshold() -> None:
    q = segments_after((), 6, at_uncertain)
    law = normalised({s: p * (value(reading(s)) >= threshold(len(s), 6)) for s, p in q.items()})
    found = first_segments(results(cards(BY_ENTROPY, acceptance="hard", max_rejections=40), 6, segments=1))
    assert_follows(found, law, q)


def test_whole_answers_follow_the_product_of_the_laws_of_their_segments() -> None:
    length, law = 3, {}

    def grow(prefix: Ids, p: float) -> None:
        if prefix and (prefix[-1] == END or len(prefix) == length):
            law[prefix] = law.get(prefix, 0.0) + p
            return
        q = segments_after(prefix, length - len(prefix), lambda _, segment: len(segment) == 1)
        tilted = normalised({s: w * passing(prefix + s, threshold(len(prefix + s), length)) for s, w in q.items()})
        for segment, w in tilted.items():
            grow(prefix + segment, p * w)

    grow((), 1.0)
    found = results(cards(FixedLength(1, 1), max_rejections=60), length)
    assert not any(s.fallback for r in found for s in r.segments)
    assert max(len(r.segments) for r in found) == length
    q = segments_after((), length, lambda *_: False)
    assert_follows(Counter(r.token_ids for r in found), law, q)


def test_number_of_candidates_and_fallbacks_follow_the_geometric_law() -> None:
    q, tau, limit = segments_after((), 2, lambda *_: False), 1.6, 5
    p = sum(w * passing(s, tau) for s, w in q.items())
    assert 0.1 < p < 0.5
    found = [r.segments[0] for r in results(cards(FixedLength(2, 2), target=tau, alpha=1.0, max_rejections=limit), 2)]
    observed = Counter(s.candidates for s in found if not s.fallback)
    observed[limit + 1] = sum(s.fallback for s in found)
    assert all(s.candidates == limit + 1 for s in found if s.fallback)
    law = {k: p * (1 - p) ** (k - 1) for k in range(1, limit + 1)} | {limit + 1: (1 - p) ** limit}
    wrong = {k: 1.3 * p * (1 - 1.3 * p) ** (k - 1) for k in range(1, limit + 1)} | {limit + 1: (1 - 1.3 * p) ** limit}
    assert_follows(observed, law, wrong)
    mean = (1 - (1 - p) ** (limit + 1)) / p
    spread = float(np.std([s.candidates for s in found])) / math.sqrt(len(found))
    assert abs(float(np.mean([s.candidates for s in found])) - mean) < 4 * spread


def test_fallbacks_are_the_best_of_the_rejected_and_one_more() -> None:
    """P(best <= r) = F_rejected(r)^limit F_q(r): the last candidate is drawn, but not tested."""
    q, tau, limit = segments_after((), 2, lambda *_: False), 2.5, 3
    refused = normalised({s: w * (1 - passing(s, tau)) for s, w in q.items()})
    law = best_law([refused] * limit + [q])
    found = [r.segments[0] for r in results(cards(FixedLength(2, 2), target=tau, alpha=1.0, max_rejections=limit), 2)]
    observed = Counter(reading(s.token_ids) for s in found if s.fallback)
    assert observed.total() > 1000
    assert_follows(observed, law, best_law([refused] * limit))


def best_law(laws: list[Law]) -> dict[str, float]:
    """Law of the text with the highest reward among one draw from each."""
    texts = sorted({reading(s) for s in laws[0]}, key=value)

    def below(highest: int) -> float:
        return math.prod(sum(p for s, p in law.items() if reading(s) in texts[:highest]) for law in laws)

    return {text: below(i + 1) - below(i) for i, text in enumerate(texts)}


@pytest.mark.parametrize("n", [2, 5])
def test_best_of_n_follows_its_order_statistics(n: int) -> None:
    q = segments_after((), 3, lambda *_: False)
    found = results(BestOfN(n=n, temperature=1.0, top_k=None), 3)
    law, other = best_law([q] * n), best_law([q] * (n + 1))
    assert_follows(Counter(r.text for r in found), law, other if n == 2 else best_law([q] * 2))


@pytest.mark.parametrize("width", [1, 4])
def test_item_level_rejection_sampling_follows_q_times_exp_min_r_target(width: int) -> None:
    q = segments_after((), 3, lambda *_: False)
    law = normalised({s: p * math.exp(min(value(reading(s)), TARGET) / BETA) for s, p in q.items()})
    method = RejectionSampling(target=TARGET, beta=BETA, temperature=1.0, top_k=None, max_candidates=60, width=width)
    found = results(method, 3)
    assert not any(r.usage.fallbacks for r in found)
    assert_follows(Counter(r.token_ids for r in found), law, q)


@pytest.mark.parametrize("chunk", [None, 2])
def test_vanilla_follows_q(chunk: int | None) -> None:
    q = segments_after((), 3, lambda *_: False)
    found = results(Vanilla(temperature=1.0, top_k=None, chunk=chunk), 3)
    assert_follows(Counter(r.token_ids for r in found), q, normalised({s: p**1.3 for s, p in q.items()}))


def test_vanilla_follows_q_under_temperature_and_top_k() -> None:
    def sharper(ids: Ids) -> list[float]:
        p = next_token(ids)
        kept = sorted(p)[-2]
        weights = [x ** (1 / 0.7) if x >= kept else 0.0 for x in p]
        return [w / sum(weights) for w in weights]

    law = {}
    for first, p in enumerate(sharper(())):
        for second, w in enumerate(sharper((first,)) if first != END else [1.0]):
            law[(first, second) if first != END else (first,)] = p * w
    found = results(Vanilla(temperature=0.7, top_k=2), 2)
    assert_follows(
        Counter(r.token_ids for r in found), {k: p for k, p in law.items() if p}, segments_after((), 2, lambda *_: False)
    )


@pytest.mark.parametrize("width", [2, 7, 21, "auto"])
def test_drawing_several_at_once_gives_the_same_text(width: Any) -> None:
    one = cards(BY_ENTROPY, target=1.5, alpha=0.8)
    for alone, several in zip(results(one, 6, 60), results(replace(one, width=width), 6, 60), strict=True):
        assert several.segments == alone.segments
        assert several.usage.candidates == alone.usage.candidates
        assert several.usage.rounds <= alone.usage.rounds

"""Methods that draw whole answers and take one: which, with what probability, and at what cost."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import REWARD, Law, reading, results, segments, value
from helpers.mock_models import count_of_b, mock

from cards import Accepted, Decoder, FixedLength, Proposed, Rejected, Scored, Segment
from cards.errors import SettingError
from cards.methods import (
    IAD,
    MBR,
    BestOfN,
    MBRBestOfN,
    PathConsistency,
    Pessimism,
    QAlign,
    QERerank,
    SelfConsistency,
    SoftBestOfN,
)
from cards.methods.base import Method
from cards.methods.responses.driver import ResponseMethod
from cards.methods.responses.similarity import jaccard
from cards.testing import check_law, total_variation

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": None}
Q, SHORT = (segments(length) for length in (2, 1))


def law_of_choice(q: Law, n: int, chances: Callable[[np.ndarray], Sequence[float]]) -> Law:
    """The law of the answer taken, over all n-tuples from q; `chances` of each to be taken, given the rewards of all."""
    law = dict.fromkeys(q, 0.0)
    for answers in product(q, repeat=n):
        p = math.prod(q[a] for a in answers)
        for answer, chance in zip(answers, chances(np.array([value(reading(a)) for a in answers])), strict=True):
            law[answer] += p * chance
    return law


def softmax(beta: float) -> Callable[[np.ndarray], Sequence[float]]:
    return lambda r: list(np.exp(r / beta) / np.exp(r / beta).sum())


def test_soft_best_of_n_takes_an_answer_in_proportion_to_its_exponential_reward() -> None:
    found = Counter(r.token_ids for r in results(SoftBestOfN(n=3, beta=0.5, **PLAIN), 2, 1500))
    check_law(found, law_of_choice(Q, 3, softmax(0.5)), wrong=law_of_choice(Q, 3, softmax(2.0)))


def test_soft_best_of_many_approaches_the_tilted_law_and_a_tiny_beta_is_best_of_n() -> None:
    tilted = {s: p * math.exp(value(reading(s)) / 0.5) for s, p in Q.items()}
    few, more = (law_of_choice(Q, n, softmax(0.5)) for n in (1, 3))
    assert few == pytest.approx(Q)
    distance = [sum(abs(law[s] - tilted[s] / sum(tilted.values())) for s in Q) for law in (few, more)]
    assert distance[1] < 0.6 * distance[0]
    soft, hard = SoftBestOfN(n=5, beta=1e-9, **PLAIN), BestOfN(n=5, **PLAIN)
    assert [r.text for r in results(soft, 3, 50)] == [r.text for r in results(hard, 3, 50)]


def test_no_choice_among_n_answers_is_further_from_the_lm_than_the_bound() -> None:
    q: Law = {(i,): 1 / 12 for i in range(12)}
    law = dict.fromkeys(q, 0.0)
    for answers in product(q, repeat=3):
        law[max(answers)] += math.prod(q[a] for a in answers)
    divergence = sum(p * math.log(p / q[a]) for a, p in law.items())
    bound = BestOfN(n=3).kl_bound or 0.0
    assert 0.9 * bound < divergence <= bound
    for n, chances in ((2, softmax(0.1)), (3, softmax(0.1)), (3, pessimist(0.1, None))):
        law = law_of_choice(SHORT, n, chances)
        assert sum(p * math.log(p / SHORT[a]) for a, p in law.items()) <= (SoftBestOfN(n=n).kl_bound or 0.0)
    assert MBR(n=1).kl_bound == 0


def test_soft_best_of_n_does_not_overflow() -> None:
    answers = [Segment(t, (), reward=r) for t, r in (("a", -1e6), ("b", 1e6), ("c", 0.0))]
    assert asyncio.run(SoftBestOfN(beta=1e-3).choose(answers, 0)) == 1


def pessimist(beta: float, highest: float | None) -> Callable[[np.ndarray], Sequence[float]]:
    """Written as the paper says it: the level by bisection, then a test of one answer after the other."""

    def chances(rewards: np.ndarray) -> list[float]:
        low, high = rewards.min() - beta - 1, rewards.max()
        for _ in range(60):
            level = (low + high) / 2
            low, high = (level, high) if np.maximum((rewards - level) / beta, 0).mean() > 1 else (low, level)
        weights = np.maximum((rewards - level) / beta, 0)
        bound = ((rewards.max() if highest is None else highest) - level) / beta
        passing = [min(1.0, w / bound) if bound > 0 else float(w > 0) for w in weights]
        reached = np.cumprod([1.0, *(1 - np.array(passing))])
        return [float(r * p) for r, p in zip(reached[:-1], passing, strict=True)]

    return chances


@pytest.mark.parametrize("highest", [None, 2.0, 0.5])
def test_pessimism_takes_the_first_answer_that_passes_its_test(highest: float | None) -> None:
    found = Counter(r.token_ids for r in results(Pessimism(n=3, beta=0.4, highest=highest, **PLAIN), 1, 1200))
    laws = [law_of_choice(SHORT, 3, pessimist(beta, highest)) for beta in (0.4, 4.0)]
    for law in laws:  # if none passes, a fresh response is returned
        refused = 1 - sum(law.values())
        assert (refused > 1e-6) == (highest is not None)
        law.update({s: law[s] + refused * p for s, p in SHORT.items()})
    check_law(found, laws[0], wrong=laws[1])


def test_pessimism_of_many_responses_approaches_its_limit() -> None:
    """For a bounded reward the law is q(y) relu((r - lambda) / beta), where its sum is 1."""
    rewards = {s: value(reading(s)) for s in SHORT}
    low, high = min(rewards.values()) - 1, max(rewards.values())
    for _ in range(60):
        level = (low + high) / 2
        mass = sum(p * max(0.0, (rewards[s] - level) / 0.4) for s, p in SHORT.items())
        low, high = (level, high) if mass > 1 else (low, level)
    limit = {s: p * max(0.0, (rewards[s] - level) / 0.4) for s, p in SHORT.items()}
    best, distances = max(rewards.values()), []
    for n in (1, 3, 6):
        law = law_of_choice(SHORT, n, pessimist(0.4, best))
        refused = 1 - sum(law.values())
        distances.append(total_variation({s: law[s] + refused * p for s, p in SHORT.items()}, limit))
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]
    found = Counter(r.token_ids for r in results(Pessimism(n=64, beta=0.4, highest=best, **PLAIN), 1, 600))
    assert total_variation(found, limit) < 0.06 < total_variation(found, SHORT) / 2


def test_a_fresh_response_of_pessimism_is_marked_as_a_fallback() -> None:
    decoder = Decoder(mock(), count_of_b, Pessimism(n=4, highest=1e9))
    result = decoder("a", max_tokens=5, seed=2, trace=True)
    [segment] = result.segments
    assert (segment.fallback, segment.candidates, len(segment.rejected)) == (True, 5, 4)
    assert segment.reward == result.text.count("b") / 2
    assert (result.usage.fallbacks, result.usage.rejected, result.usage.rm_calls) == (1, 4, 5)
    assert Pessimism(n=4, highest=1.0).kl_bound == BestOfN(n=5).kl_bound


def test_pessimism_with_a_tiny_beta_is_best_of_n() -> None:
    cautious, greedy = Pessimism(n=5, beta=1e-9, **PLAIN), BestOfN(n=5, **PLAIN)
    assert [r.text for r in results(cautious, 3, 50)] == [r.text for r in results(greedy, 3, 50)]


def test_pessimism_never_takes_one_below_its_level() -> None:
    rewards = [0.0, 9.0, 5.0, 1.0]
    for seed in range(20):
        assert taken(Pessimism(highest=1e9), list("abcd"), rewards, seed) is None
        assert taken(Pessimism(highest=-1e9, beta=1e-3), list("abcd"), rewards, seed) == 1


def taken(method: ResponseMethod, texts: Sequence[str], rewards: Sequence[float] | None = None, seed: int = 0) -> int | None:
    given: Sequence[float | None] = rewards or [None] * len(texts)
    return asyncio.run(method.choose([Segment(t, (), reward=r) for t, r in zip(texts, given, strict=True)], seed))


def brute_force(texts: Sequence[str], score: Callable[[int, list[float]], float]) -> int:
    """argmax of a score of (i, similarities of text i to the other texts), the first of equals."""
    return max(
        range(len(texts)), key=lambda i: score(i, [jaccard(texts[i], t) for j, t in enumerate(texts) if j != i] or [0.0])
    )


def tuples_of_texts() -> list[tuple[list[str], list[float]]]:
    random = np.random.default_rng(7)
    found = []
    for _ in range(40):
        n = int(random.integers(1, 7))
        texts = [" ".join(random.choice(list("abcd"), random.integers(0, 5))) for _ in range(n)]
        found.append((texts, [float(r) for r in random.normal(size=n)]))
    return found


@pytest.mark.parametrize(("texts", "rewards"), tuples_of_texts())
def test_mbr_and_its_relatives_equal_brute_force(texts: list[str], rewards: list[float]) -> None:
    n = len(texts)
    assert taken(MBR(utility="jaccard"), texts) == brute_force(texts, lambda i, s: math.fsum(s) / len(s))
    for beta in (0.0, 0.7, 3.0):
        blended = partial(lambda b, i, s: rewards[i] + b * (math.fsum(s) / len(s)), beta)
        want = brute_force(texts, blended)
        assert taken(MBRBestOfN(beta=beta, utility="jaccard"), texts, rewards) == want
    for keep in range(1, n + 1):
        best = sorted(range(n), key=lambda i: -rewards[i])[:keep]
        chosen = brute_force([texts[i] for i in best], lambda i, s: math.fsum(s) / len(s))
        assert taken(QERerank(n=n, keep=keep, utility="jaccard"), texts, rewards) == best[chosen]


def test_the_limits_of_mbr_with_rewards_are_best_of_n_and_mbr() -> None:
    texts, rewards = ["a b c", "a b c d", "x y", "a b d", "b c a"], [0.1, 0.2, 3.0, -1.0, 0.0]
    assert taken(QERerank(keep=1), texts, rewards) == taken(MBRBestOfN(beta=0.0), texts, rewards) == 2
    mbr = taken(MBR(), texts)
    assert mbr != 2
    assert taken(QERerank(n=5, keep=5), texts, rewards) == taken(MBRBestOfN(beta=1e9), texts, rewards) == mbr


def test_of_equal_texts_the_first_is_taken() -> None:
    assert taken(MBR(), ["q", "a b c", "b c d", "a b c", "a b c"]) == 1


def test_a_utility_may_be_a_function() -> None:
    shortest = MBR(utility=lambda answer, reference: -len(answer))
    assert taken(shortest, ["aaa", "a", "aa", "b"]) == 1
    with pytest.raises(SettingError, match="finite"):
        taken(MBR(utility=lambda answer, reference: math.nan), ["a", "b"])


METHODS: list[Method] = [
    BestOfN(n=5),
    SoftBestOfN(n=5),
    Pessimism(n=5),
    MBR(n=5),
    MBRBestOfN(n=5),
    QERerank(n=5, keep=3),
    SelfConsistency(n=5, pattern=r"w\d"),
    SelfConsistency(n=5, pattern=r"w\d", beta=0.7),
    PathConsistency(branches=7, window=3, confidence=0.6, pattern=r"w\d", boundary=FixedLength(maximum=3)),
    IAD(iterations=3, n=3),
    QAlign(steps=6),
    QAlign(steps=6, take="best"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_candidate_gets_one_verdict_and_is_on_the_books(method: Method) -> None:
    decoder = Decoder(mock(end="c"), count_of_b, method)
    for seed in range(5):
        *events, _ = list(decoder.stream("ab", max_tokens=9, seed=seed, trace=True))
        result = decoder("ab", max_tokens=9, seed=seed, trace=True)
        proposed = [e.candidate for e in events if isinstance(e, Proposed)]
        scored = [e.candidate for e in events if isinstance(e, Scored)]
        assert proposed == list(range(len(proposed)))
        assert scored == (proposed if "reward" in method.needed else [])
        assert sorted(e.candidate for e in events if isinstance(e, Accepted | Rejected)) == proposed
        assert isinstance(events[-1], Accepted)
        [segment] = result.segments
        usage = result.usage
        assert segment.candidates == usage.candidates == len(proposed) == usage.rejected + usage.accepted
        assert usage.rm_calls == len(scored)
        assert segment.finish_reason in ("stop", "length")
        seen = len(segment.token_ids) + sum(len(s.token_ids) for s in segment.rejected)
        assert usage.lm_decoded_tokens <= seen
        assert usage.lm_decoded_tokens == seen or method.name in ("qalign", "path-consistency")
        assert usage.lm_wasted_tokens == usage.lm_decoded_tokens - len(segment.token_ids)
        for answer in (segment, *segment.rejected):
            assert answer.reward == (answer.text.count("b") / 2 if scored else None)


def test_no_rejected_answers_are_kept_without_a_trace() -> None:
    [segment] = Decoder(mock(), count_of_b, BestOfN(n=4))("ab", max_tokens=4).segments
    assert (segment.candidates, segment.rejected) == (4, ())


@pytest.mark.parametrize(
    "method",
    [SoftBestOfN(n=1), Pessimism(n=1), MBR(n=1), SelfConsistency(n=1), IAD(n=1, iterations=1), QAlign(steps=0)],
)
def test_one_answer_is_plain_sampling(method: Method) -> None:
    for seed in range(5):
        one = Decoder(mock(), REWARD, method)("ab", max_tokens=6, seed=seed)
        assert one.text == Decoder(mock(), REWARD, BestOfN(n=1))("ab", max_tokens=6, seed=seed).text
        assert one.segments[0].candidates == 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SoftBestOfN(beta=0.0), "beta"),
        (lambda: SoftBestOfN(n=0), "n must"),
        (lambda: Pessimism(beta=math.inf), "beta"),
        (lambda: Pessimism(highest=math.nan), "highest"),
        (lambda: Pessimism(top_p=0.0), "top_p"),
        (lambda: MBR(utility="bleu"), "utility"),  # type: ignore[arg-type]
        (lambda: MBR(temperature=-1.0), "temperature"),
        (lambda: MBRBestOfN(beta=-1.0), "beta"),
        (lambda: MBRBestOfN(utility="bleu"), "utility"),  # type: ignore[arg-type]
        (lambda: QERerank(n=4, keep=5), "keep"),
        (lambda: QERerank(keep=0), "keep"),
        (lambda: QERerank(utility="bleu"), "utility"),  # type: ignore[arg-type]
        (lambda: SelfConsistency(pattern="(a"), "pattern"),
        (lambda: SelfConsistency(beta=0.0), "beta"),
        (lambda: PathConsistency(branches=0), "branches"),
        (lambda: PathConsistency(window=0), "window"),
        (lambda: PathConsistency(confidence=1.1), "confidence"),
        (lambda: PathConsistency(pattern="*"), "pattern"),
        (lambda: PathConsistency(boundary=None), "boundary"),  # type: ignore[arg-type]
        (lambda: PathConsistency(top_k=0), "top_k"),
        (lambda: IAD(iterations=0), "iterations"),
        (lambda: IAD(n=0), "n must"),
        (lambda: IAD(top_k=0), "top_k"),
        (lambda: QAlign(steps=-1), "steps"),
        (lambda: QAlign(beta=0.0), "beta"),
        (lambda: QAlign(take="first"), "take"),  # type: ignore[arg-type]
        (lambda: QAlign(top_p=2.0), "top_p"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()

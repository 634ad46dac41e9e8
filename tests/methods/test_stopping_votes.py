"""Votes that stop: adaptive consistency by its exact law, and DeepConf by its formulas."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from itertools import product
from math import comb
from typing import Any

import numpy as np
import pytest
from helpers.letter_world import LETTERS, next_token

from cards import Decoder, Proposed, Response, Scored, Segment
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.methods import AdaptiveConsistency, DeepConf, SelfConsistency
from cards.methods.responses.self_consistency import final_answer
from cards.rewards import ConfidenceReward
from cards.testing import check_law

P = (0.5, 0.3, 0.15, 0.05)  # of the final answers a, b and c, and of a response without one


def answers() -> MockEngine:
    return MockEngine(lambda ids: P, "abcx")


def leads(votes: list[int]) -> float:
    """P(p > 1/2) for p ~ Beta(v1 + 1, v2 + 1), as a binomial tail."""
    v1, v2 = sorted(votes, reverse=True)[:2]
    n = v1 + v2 + 1
    return float(sum(comb(n, k) for k in range(v1 + 1)) / 2**n)


def stopped(n: int, confidence: float) -> dict[tuple[int, str], float]:
    """The law of the number of responses and of the winner."""
    law: defaultdict[tuple[int, str], float] = defaultdict(float)
    for drawn in product(range(4), repeat=n):
        votes = [0, 0, 0]
        for count, token in enumerate(drawn, 1):
            if token < 3:
                votes[token] += 1
            if leads(votes) >= confidence or count == n:
                break
        best = max(votes)
        winner = next((t for t in drawn[:count] if t < 3 and votes[t] == best), drawn[0])
        p = float(np.prod([P[t] for t in drawn]))
        law[count, "abcx"[winner]] += p
    return dict(law)


def test_adaptive_consistency_follows_the_law_of_its_rule() -> None:
    method = AdaptiveConsistency(n=6, confidence=0.8, pattern="[abc]", temperature=1.0)
    results = Decoder(answers(), None, method).batch(["a"] * 1500, max_tokens=1, progress=False)
    found = Counter((r.usage.candidates, r.text) for r in results)
    check_law(found, stopped(6, 0.8), wrong=stopped(6, 0.9))


def test_adaptive_consistency_that_never_stops_is_self_consistency() -> None:
    for seed in range(8):
        methods = (AdaptiveConsistency(n=7, confidence=1.0, window=3, pattern="[abc]"), SelfConsistency(n=7, pattern="[abc]"))
        texts = [Decoder(answers(), None, method)("a", max_tokens=4, seed=seed).segments for method in methods]
        assert texts[0] == texts[1]
    usage = Decoder(answers(), None, AdaptiveConsistency(n=7, confidence=1e-9, pattern="[abc]"))("a", max_tokens=4).usage
    assert usage.candidates == 1


# DeepConf.

WINDOW, CHUNK, LENGTH = 4, 3, 12
DEEP: dict[str, Any] = {
    "n": 12,
    "warmup": 5,
    "keep": 0.5,
    "top": 2,
    "window": WINDOW,
    "chunk": CHUNK,
    "pattern": "[abc]",
    "temperature": 1.0,
    "top_k": None,
}


def engine() -> MockEngine:
    return MockEngine(next_token, LETTERS)


def of_tokens(ids: tuple[int, ...]) -> list[float]:
    laws = [sorted(next_token((0, *ids[:t]))) for t in range(len(ids))]
    return [-float(np.mean(np.log(p[-2:]))) for p in laws]


def lowest(ids: tuple[int, ...]) -> float:
    values = of_tokens(ids)
    size = min(WINDOW, len(ids))
    return min(float(np.mean(values[i : i + size])) for i in range(len(ids) - size + 1))


def leader(drawn: list[Segment], least: float) -> tuple[Segment, float]:
    """The most confident response with the leading answer, and the share of that answer."""
    voters = [s for s in drawn if lowest(s.token_ids) >= least - 1e-7 and len(s.token_ids) == LENGTH]
    votes: dict[str | None, float] = {}
    for segment in voters:
        answer = final_answer(segment.text, "[abc]")
        votes[answer] = votes.get(answer, 0.0) + lowest(segment.token_ids)
    answer = max(votes, key=lambda a: votes[a])
    best = max((s for s in voters if final_answer(s.text, "[abc]") == answer), key=lambda s: lowest(s.token_ids))
    return best, votes[answer] / sum(votes.values())


@pytest.mark.parametrize("consensus", [1.0, 0.6])
def test_responses_stop_at_the_first_test_below_the_threshold_and_the_others_vote(consensus: float) -> None:
    stops, counts = Counter[int](), Counter[int]()
    for seed in range(25):
        decoder = Decoder(engine(), None, DeepConf(consensus=consensus, **DEEP))
        *events, done = decoder.stream("a", max_tokens=LENGTH, seed=seed)
        drawn = [e.segment for e in events if isinstance(e, Proposed)]
        rewards = [e.segment.reward for e in events if isinstance(e, Scored)]
        assert rewards == pytest.approx([lowest(s.token_ids) for s in drawn], abs=1e-5)
        least = np.quantile([lowest(s.token_ids) for s in drawn[:5]], 0.5)
        for segment in drawn[5:]:
            tests = range(CHUNK, LENGTH, CHUNK)
            stop = next((k for k in tests if k >= WINDOW and lowest(segment.token_ids[:k]) < least - 1e-7), LENGTH)
            assert len(segment.token_ids) == stop
            stops[stop] += 1

        counts[len(drawn)] += 1
        assert len(drawn) in (5, 10, 12)
        if len(drawn) < 12:
            assert leader(drawn, float(least))[1] >= consensus - 1e-6
        assert done.result.token_ids == leader(drawn, float(least))[0].token_ids  # type: ignore[union-attr]
    assert len(stops) > 2
    assert len(counts) > 1 or consensus == 1.0


def test_offline_it_votes_among_the_confident_responses() -> None:
    for seed in range(6):
        method = DeepConf(**{**DEEP, "n": 5})
        result = Decoder(engine(), None, method)("a", max_tokens=LENGTH, seed=seed, trace=True)
        assert result.usage.candidates == 5
        assert result.usage.lm_decoded_tokens == 5 * LENGTH
        assert result.usage.rounds == 1
    everything = Decoder(engine(), None, DeepConf(**{**DEEP, "n": 6, "warmup": 6, "keep": 1.0}))
    assert everything("a", max_tokens=LENGTH, seed=3).usage.rm_calls == 6


def test_a_stopped_response_saves_tokens_and_is_read_once() -> None:
    usage = Decoder(engine(), None, DeepConf(consensus=1.0, **DEEP))("a", max_tokens=LENGTH, seed=1).usage
    assert usage.lm_decoded_tokens < 12 * LENGTH
    assert usage.rm_tokens <= usage.lm_decoded_tokens  # responses with the same beginning share it


def test_a_response_without_final_answer_does_not_end_the_vote() -> None:
    source = MockEngine(lambda ids: (0.0, 0.0, 0.5, 0.5), "abcx")
    result = Decoder(source, None, DeepConf(**{**DEEP, "pattern": "[ab]"}))("a", max_tokens=6, seed=2)
    assert result.finish_reason == "length"
    with pytest.raises(SettingError, match="regular expression"):
        DeepConf(pattern="(")
    reward = ConfidenceReward(source, measure="lowest-group", top=2)
    [score] = asyncio.run(reward.score(source.encode("a"), [Response("c", (2,))]))
    assert score == pytest.approx(np.log(2), abs=1e-5)

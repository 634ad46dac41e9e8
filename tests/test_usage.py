"""Usage adds up, and each request has a separate record."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pytest

from cards import CARDS, Decoder, FixedLength, Result, Usage
from cards.engines.mock import MockEngine
from cards.events import Fallback, Proposed, Rejected
from cards.methods import BestOfN, RejectionSampling, Vanilla
from cards.methods.base import Method
from cards.usage import current_account, track_usage

LETTERS = "abcd"  # d ends an answer


def engine() -> MockEngine:
    return MockEngine(lambda ids: [0.3, 0.3, 0.3, 0.1], LETTERS, end="d")


async def count_of_b(prompt: str, response: str) -> float:
    return float(response.count("b"))


def test_usages_add_field_by_field() -> None:
    one = Usage(**{f.name: i for i, f in enumerate(fields(Usage), 1)})
    two = Usage(**{f.name: 100 * i for i, f in enumerate(fields(Usage), 1)})
    assert (one + two).to_dict() == {f.name: 101 * i for i, f in enumerate(fields(Usage), 1)}
    assert one.lm_steps == 1


def test_rates_are_none_before_there_is_anything_to_count() -> None:
    assert Usage().acceptance_rate is None
    assert Usage().fallback_rate is None


def test_rates_are_what_they_say() -> None:
    usage = Usage(accepted=3, rejected=9, fallbacks=1)
    assert usage.acceptance_rate == 0.25
    assert usage.fallback_rate == 0.25


def test_costs_outside_a_request_go_nowhere() -> None:
    current_account().add(steps=5)
    assert current_account().usage.lm_steps == 0


async def test_usage_travels_into_tasks_and_stays_apart_from_other_requests() -> None:
    async def work(steps: int) -> Usage:
        with track_usage() as usage:
            await asyncio.gather(*(asyncio.create_task(one()) for _ in range(steps)))
        return usage

    async def one() -> None:
        await asyncio.sleep(0)
        current_account().add(steps=1)

    assert [u.lm_steps for u in await asyncio.gather(work(2), work(5), work(0))] == [2, 5, 0]
    assert current_account().usage.lm_steps == 0


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize(
    "method",
    [
        Vanilla(chunk=3),
        BestOfN(n=4),
        RejectionSampling(target=3.0, max_candidates=6, width=4),
        CARDS(target=3.0, boundary=FixedLength(maximum=3), width=1, max_rejections=5),
        CARDS(target=3.0, boundary=FixedLength(maximum=3), width=4, max_rejections=5),
        CARDS(target=3.0, min_segment=2, max_segment=5, entropy_threshold=1.0, width="auto", max_rejections=5),
    ],
    ids=lambda m: f"{m.name}, width {getattr(m, 'width', None)}",
)
def test_books_equal_what_the_events_show(method: Method) -> None:
    decoder = Decoder(engine(), count_of_b, method)
    total = Usage()
    for seed in range(8):
        events = list(decoder.stream("aa", max_tokens=12, seed=seed, trace=True))
        result = events[-1].result  # type: ignore[union-attr]
        check_books(result, method)
        assert result.usage.candidates == sum(isinstance(e, Proposed) for e in events)
        assert result.usage.rejected == sum(isinstance(e, Rejected) for e in events)
        assert result.usage.fallbacks == sum(isinstance(e, Fallback) for e in events)
        total += result.usage
    assert total.lm_wasted_tokens == 0 or method.name != "vanilla"
    assert total.lm_wasted_tokens > 0 or method.name == "vanilla"


def check_books(result: Result, method: Method) -> None:
    usage = result.usage
    kept = len(result.token_ids)
    seen = sum(len(s.token_ids) + sum(len(r.token_ids) for r in s.rejected) for s in result.segments)
    assert usage.lm_decoded_tokens - kept == usage.lm_wasted_tokens
    assert usage.lm_decoded_tokens >= seen
    assert usage.candidates == sum(s.candidates for s in result.segments)
    assert usage.accepted + usage.fallbacks == len(result.segments)
    width = getattr(method, "width", None)
    if width == 1:
        assert usage.lm_decoded_tokens == seen
        assert usage.rounds == usage.candidates
        assert usage.rm_calls == usage.candidates + (method.name == "cards")  # and the bare prompt
    assert usage.rm_calls >= usage.candidates - usage.rounds * (method.name == "vanilla")
    assert usage.rejected <= usage.candidates
    assert 0 < usage.rounds <= usage.candidates
    assert usage.lm_steps > 0
    assert usage.seconds > 0


def test_a_known_scenario_is_booked_to_the_token() -> None:
    """Two segments of two tokens, the second candidate of each accepted, four drawn at a time."""
    wanted = iter([-9.0, 9.0, 9.0, 9.0, -9.0, 9.0, -9.0, -9.0])

    async def scripted(prompt: str, response: str) -> float:
        return next(wanted) if response else 0.0

    method = CARDS(target=1.0, beta=0.01, temperature=1.0, boundary=FixedLength(2, 2), width=4)
    source = MockEngine(lambda ids: [0.5, 0.5], "ab")
    usage = Decoder(source, scripted, method)("aab", max_tokens=4).usage
    assert usage.rounds == 2
    assert (usage.candidates, usage.accepted, usage.rejected, usage.fallbacks) == (4, 2, 2, 0)
    assert (usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (16, 12)
    assert usage.lm_prefill_tokens == 3 + 5
    assert usage.lm_steps == 4
    assert usage.rm_calls == 9

"""A request leaves no cache slots or tasks behind, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from helpers.mock_models import CARDS_IN_THREES, Hangs, assert_free, count_of_b, mock
from helpers.waiting import eventually

from cards import CARDS, Decoder, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.errors import BatchError, PromptError, RewardError
from cards.events import Accepted, Event, Segment
from cards.methods import Cascade, Vanilla
from cards.rewards import FunctionReward


async def test_closing_a_stream_early_frees_its_rows(letters: TransformersEngine) -> None:
    decoder = Decoder(letters, FunctionReward(count_of_b, target=50.0), CARDS(boundary=FixedLength(maximum=20), width=4))
    events = decoder.astream("ab", max_tokens=100)
    await anext(events)
    await events.aclose()
    await assert_free(letters)


async def test_closing_a_sync_stream_early_frees_its_rows(letters: TransformersEngine) -> None:
    decoder = Decoder(letters, None, Vanilla(chunk=1))
    events = decoder.stream("ab", max_tokens=100)
    next(events)
    events.close()
    await eventually(lambda: letters.requests == 0, lambda: asyncio.sleep(0.01))
    await assert_free(letters)


async def test_a_cancelled_request_leaves_no_row_busy_and_others_go_on(letters: TransformersEngine) -> None:
    hanging = Hangs(after=2)
    cancelled = asyncio.create_task(Decoder(letters, hanging, CARDS(width=4, max_segment=8)).agenerate("ab"))
    other = asyncio.create_task(Decoder(letters, None, Vanilla()).agenerate("ba", max_tokens=30))
    await hanging.waiting.wait()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert len((await other).token_ids) == 30
    await assert_free(letters)


async def test_cancelling_at_any_moment_leaves_no_row_busy(letters: TransformersEngine) -> None:
    decoder = Decoder(letters, FunctionReward(count_of_b, target=2.0), CARDS(width=3, boundary=FixedLength(maximum=4)))
    want = (await decoder.agenerate("ab", max_tokens=8)).segments
    for turns in range(0, 60, 4):
        task = asyncio.create_task(decoder.agenerate("ab", max_tokens=40))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await assert_free(letters)
    assert (await decoder.agenerate("ab", max_tokens=8)).segments == want


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_is_not_lost_if_an_event_arrives_at_the_same_time(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, wanted = Decoder(mock(), None, Vanilla()), asyncio.Queue[None]()

    async def method(_: object) -> AsyncIterator[Event]:
        for index in range(100):
            await wanted.get()
            yield Accepted(index, 0, Segment("a", (3,)))

    monkeypatch.setattr(Decoder, "_method_events", lambda self, request: method(request))

    async def read() -> None:
        async for _ in decoder.astream("ab", deadline=600):
            pass

    async def take_turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    task = asyncio.create_task(read())
    await take_turns(20)
    wanted.put_nowait(None)
    await take_turns(turns)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    assert task.cancelled()


async def test_a_failing_reward_is_reported_with_the_answer_so_far_and_frees_rows(letters: TransformersEngine) -> None:
    calls = 0

    def fails_later(prompt: str, response: str) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise ZeroDivisionError("by zero")
        return 5.0

    decoder = Decoder(letters, FunctionReward(fails_later, target=0.0), CARDS(boundary=FixedLength(maximum=2), width=1))
    with pytest.raises(RewardError, match=r"fails_later.*ZeroDivisionError: by zero") as caught:
        await decoder.agenerate("ab", max_tokens=20)
    partial = caught.value.partial
    assert partial is not None
    assert len(partial.segments) == 2
    await assert_free(letters)
    assert (await decoder.agenerate("ab", max_tokens=6)).finish_reason == "length"


@pytest.mark.parametrize("kind", ["call", "stream", "batch"])
def test_a_failing_reward_reaches_sync_callers(kind: str) -> None:
    decoder = Decoder(mock(), lambda p, r: float("nan"), CARDS_IN_THREES)
    runs: dict[str, Callable[[], object]] = {
        "call": lambda: decoder("a"),
        "stream": lambda: list(decoder.stream("a")),
        "batch": lambda: decoder.batch(["a"]),
    }
    with pytest.raises((RewardError, BatchError), match="finite"):
        runs[kind]()


async def test_a_reward_that_cancels_itself_is_an_error_not_a_hang(letters: TransformersEngine) -> None:
    async def cancels(prompt: str, response: str) -> float:
        raise asyncio.CancelledError

    with pytest.raises(RewardError, match="cancelled its own call"):
        await Decoder(letters, cancels, CARDS(target=1.0)).agenerate("ab")
    await assert_free(letters)


async def test_closing_a_decoder_closes_what_its_method_holds() -> None:
    closed: list[str] = []

    class Closes(FunctionReward):
        context: int | None = 4

        async def aclose(self) -> None:
            closed.append(self.name)

    guide, reward = (Closes(lambda prompt, response: 0.0, name=name, target=0.0) for name in ("guide", "reward"))
    decoder = Decoder(mock(), reward, Cascade(target=0.0, guide=guide))
    assert decoder.method.models == [guide]
    with pytest.raises(PromptError, match="reward 'reward' reads at most 4"):
        await decoder.agenerate("abca")
    reward.context = None
    with pytest.raises(PromptError, match="reward 'guide' reads at most 4"):
        await decoder.agenerate("abca")
    assert len((await decoder.agenerate("abc")).token_ids) == 1
    await decoder.aclose()
    assert closed == ["reward", "guide"]

"""Candidates come out in order of their number, whatever the order in which they finish."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from itertools import permutations

import pytest

from cards.engines.ordered import OrderedQueue, in_order
from cards.events import Segment


def segment(number: int) -> Segment:
    return Segment(str(number), (number,))


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_every_order_of_finishing_gives_the_same_candidates(order: tuple[int, ...]) -> None:
    finished = [asyncio.Event() for _ in order]

    async def candidate(number: int) -> Segment:
        await finished[number].wait()
        return segment(number)

    batches = in_order([candidate(i) for i in range(3)])
    waiting, done, got = None, set[int](), list[Segment]()
    for number in order:
        waiting = waiting or asyncio.ensure_future(anext(batches))
        finished[number].set()
        done.add(number)
        for _ in range(4):
            await asyncio.sleep(0)
        ready = next(i for i in range(4) if i not in done)  # up to the first unfinished one
        if waiting.done():
            got += waiting.result()
            waiting = None
        assert got == [segment(i) for i in range(ready)]
    await batches.aclose()


async def test_an_error_comes_in_its_turn_and_closing_cancels_what_is_left() -> None:
    cancelled = []

    async def candidate(number: int) -> Segment:
        if number == 1:
            raise ValueError("broken")
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return segment(number)

    wanted = asyncio.Event()
    async with aclosing(in_order([candidate(0), candidate(2)], wanted)) as batches:
        assert await anext(batches) == [segment(0)]
        assert not wanted.is_set()
    assert cancelled == [2]
    with pytest.raises(ValueError, match="broken"):
        await anext(in_order([candidate(1), candidate(3)]))
    assert cancelled == [2, 3]


async def test_a_queue_hands_out_from_another_thread() -> None:
    queue = OrderedQueue(4)

    def work() -> list[bool]:
        handed = []
        for number in (1, 0, 3, 2):
            queue.finish(number, segment(number))
            handed.append(queue.deliver())
        return handed

    results: list[list[bool]] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    got = []
    while queue.remaining:
        got.append(await asyncio.wait_for(queue.receive(), 10))
    thread.join()
    assert got == [[segment(0), segment(1)], [segment(2), segment(3)]]
    assert results == [[False, True, False, True]]


async def test_a_failed_queue_raises_the_error() -> None:
    queue = OrderedQueue(2)
    queue.finish(1, segment(1))
    assert not queue.deliver()
    queue.fail(ValueError("gone"))
    with pytest.raises(ValueError, match="gone"):
        await queue.receive()
    assert queue.remaining == 2

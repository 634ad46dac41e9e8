"""Delivery of concurrent candidates in order of their numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any

from cards.engines.base import call_in_loop
from cards.events import Segment


async def in_order(
    candidates: Sequence[Coroutine[Any, Any, Segment]], wanted: asyncio.Event | None = None
) -> AsyncGenerator[list[Segment], None]:
    """Run the candidates in this event loop. Yield lists of all that are ready, up to the first unfinished one.

    `wanted` is set while the caller waits for candidates. Closing the iterator cancels the unfinished candidates.
    """
    wanted = wanted or asyncio.Event()
    tasks = [asyncio.create_task(candidate) for candidate in candidates]
    try:
        while tasks:
            wanted.set()
            ready = [await tasks.pop(0)]
            wanted.clear()
            while tasks and tasks[0].done():
                ready.append(tasks.pop(0).result())
            yield ready
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class OrderedQueue:
    """A queue that passes `count` candidates from a worker thread to the event loop that made the queue."""

    def __init__(self, count: int) -> None:
        self.remaining = count  # not yet received
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[Segment] | BaseException] = asyncio.Queue()
        self._finished: dict[int, Segment] = {}
        self._next = 0

    def finish(self, number: int, segment: Segment) -> None:
        """Store a complete candidate. Numbers start at 0."""
        self._finished[number] = segment

    def deliver(self) -> bool:
        """Pass on all candidates up to the first unfinished one. Return whether there were any."""
        ready = []
        while self._next in self._finished:
            ready.append(self._finished.pop(self._next))
            self._next += 1
        if ready:
            call_in_loop(self._loop, self._queue.put_nowait, ready)
        return bool(ready)

    def fail(self, error: BaseException) -> None:
        """Make `receive` raise an error."""
        call_in_loop(self._loop, self._queue.put_nowait, error)

    async def receive(self) -> list[Segment]:
        """Wait for the next candidates. Call this in the event loop."""
        ready = await self._queue.get()
        if isinstance(ready, BaseException):
            raise ready
        self.remaining -= len(ready)
        return ready

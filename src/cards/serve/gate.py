"""Admission control: a limit on concurrent responses and a bounded queue of requests in order of arrival."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from cards.serve.errors import ApiError

MAX_RETRY_AFTER = 60  # seconds


class Gate:
    """Admit requests so that at most `max_running` responses are decoded and at most `max_queue` requests wait."""

    def __init__(self, max_running: int, max_queue: int) -> None:
        self.max_running, self.max_queue = max_running, max_queue
        self.running = 0  # responses
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # number of responses of each request
        self.finished = deque([0.0], maxlen=65)  # the work done at the latest releases, at first at the start
        self._work, self._changed = 0.0, time.monotonic()  # work until the time of the latest change of `running`

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.max_queue and self.running >= self.max_running

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting)

    @property
    def work(self) -> float:
        """Return the seconds of decoding so far, summed over the responses. It stands still while nothing runs."""
        return self._work + self.running * (time.monotonic() - self._changed)

    @property
    def retry_after(self) -> int:
        """Estimate in how many seconds the waiting requests are served, from the work that the latest responses took."""
        if len(self.finished) < 2:
            return 1
        seconds = (self.work - self.finished[0]) / (len(self.finished) - 1)  # of a response
        waiting = sum(count for count, _ in self.waiting)
        return min(MAX_RETRY_AFTER, max(1, math.ceil(waiting * seconds / self.max_running)))

    async def enter(self, count: int) -> None:
        """Wait for room for `count` responses, each of which is released with `leave`.

        Raises ApiError (429) if the queue is full.
        """
        if not self.waiting and self.running + count <= self.max_running:
            self._change(count)
            return
        if len(self.waiting) >= self.max_queue:
            seconds = self.retry_after
            raise ApiError(429, f"The queue is full. Retry in {seconds} s.", code="queue_full", retry_after=seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = count, future
        self.waiting.append(entry)
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():  # admitted and cancelled in the same iteration of the event loop
                self.leave(count)
            elif entry in self.waiting:
                self.waiting.remove(entry)
                self._admit()
            raise

    def leave(self, count: int = 1) -> None:
        self._change(-count)
        self.finished.append(self._work)
        self._admit()

    def _change(self, count: int) -> None:
        self._work, self._changed = self.work, time.monotonic()
        self.running += count

    def _admit(self) -> None:
        while self.waiting and (self.waiting[0][1].done() or self.running + self.waiting[0][0] <= self.max_running):
            count, future = self.waiting.popleft()
            if not future.done():
                self._change(count)
                future.set_result(None)

"""The event loop thread that runs synchronous calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """An event loop in a thread. Synchronous calls then work anywhere, even inside a running loop (a notebook)."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="cards-loop", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result. Ctrl-C in the caller's thread cancels it and waits until it ends."""
        tasks: list[asyncio.Task[T]] = []
        ended = threading.Event()

        def begin() -> None:
            tasks.append(self.loop.create_task(work))
            tasks[0].add_done_callback(lambda _: ended.set())

        self.loop.call_soon_threadsafe(begin)
        try:
            ended.wait()
        except BaseException:
            self.loop.call_soon_threadsafe(lambda: tasks[0].cancel())
            ended.wait()
            raise
        return tasks[0].result()


_lock = threading.Lock()
_the_background: Background | None = None


def background() -> Background:
    """Return the event loop that all synchronous calls share."""
    global _the_background
    with _lock:
        if _the_background is None:
            _the_background = Background()
        return _the_background

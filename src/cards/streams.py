"""Streams of the events of a request, with the response so far."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace

from cards.background import background
from cards.events import Done, Event, Fold, Result


class AsyncStream(AsyncIterator[Event]):
    """The events of a request, ending with `Done`. Close the stream (`contextlib.aclosing`) to end the request early."""

    def __init__(self, events: AsyncGenerator[Event, None], fold: Fold) -> None:
        self._events, self._fold = events, fold
        self._done: Result | None = None

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        if isinstance(event, Done):
            self._done = event.result
        return event

    async def aclose(self) -> None:
        """End the request: free its cache slots and complete its usage."""
        await self._events.aclose()

    @property
    def result(self) -> Result:
        """The response so far and its cost; after `Done`, the complete response."""
        if self._done is not None:
            return self._done
        result = self._fold.result("interrupted")
        seconds = result.usage.seconds or time.perf_counter() - self._fold.start
        return replace(result, usage=replace(result.usage, seconds=seconds))


class Stream(Iterator[Event]):
    """Sync version of AsyncStream, for `contextlib.closing`. Ctrl-C while it waits for an event also ends the request."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    def __next__(self) -> Event:
        try:
            return background().run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the request: free its cache slots and complete its usage."""
        background().run(self._stream.aclose())

    @property
    def result(self) -> Result:
        """The response so far and its cost; after `Done`, the complete response."""
        return self._stream.result

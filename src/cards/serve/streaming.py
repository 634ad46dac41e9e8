"""Server-sent events, and the cancellation of work when a client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cards.events import Done
from cards.serve.errors import api_error
from cards.serve.formatters import ResponseFormatter
from cards.serve.generation import Generation
from cards.serve.record import Record

T = TypeVar("T")
PING_SECONDS = 10.0  # silence after which a stream sends a comment, because proxies close silent connections


class DisconnectedError(Exception):
    """The client disconnected."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work. If the client disconnects first, cancel it and raise DisconnectedError."""
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectedError
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The events of a started generation as a stream. `resources` are closed at the end, also after an error."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        formatter: ResponseFormatter,
        record: Record,
        resources: AsyncExitStack,
        with_usage: bool,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})  # proxies must not buffer
        del self.headers["content-length"]
        self.generation, self.formatter, self.record = generation, formatter, record
        self.resources, self.with_usage = resources, with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.resources:
            try:
                await unless_disconnected(receive, self._send(send))
            except DisconnectedError:
                self.record.disconnected = True

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for data in self._data():
            await send({"type": "http.response.body", "body": event_text(data).encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _data(self) -> AsyncIterator[dict[str, Any] | str | None]:
        """Yield the data of the events, and None for a comment."""
        for data in self.formatter.opening():
            yield data
        started: set[int] = set()
        running = len(self.generation.request.choices)
        try:
            async for item in self.generation.events(PING_SECONDS):
                if item is None:
                    yield None
                    continue
                choice, event = item
                running -= isinstance(event, Done)
                for data in self.formatter.chunks(choice, event, first=choice.index not in started, last=not running):
                    yield data
                started.add(choice.index)
            end = self.formatter.closing(self.with_usage)
        except Exception as error:  # the status has been sent, so the error becomes an event
            self.record.error = api_error(error)
            end = self.formatter.failure(self.record.error)
        for last in end:
            yield last


def event_text(data: dict[str, Any] | str | None) -> str:
    """Return a server-sent event, named by the field `type` of the data if there is one, or a comment for None."""
    if data is None:
        return ": ping\n\n"
    if isinstance(data, str):
        return f"data: {data}\n\n"
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data, allow_nan=False)}\n\n"

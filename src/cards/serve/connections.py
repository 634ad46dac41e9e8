"""Limits on connections: the time for the head of a request, the number of connections, and open files."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cards.serve.options import ServerOptions

log = logging.getLogger("cards.serve")
BACKLOG = 128  # connections that the kernel keeps until they are accepted, and that are accepted at a time
RESERVED_FILES = 2 * BACKLOG + 128  # for connections being accepted or closed, and for the models


class Config(uvicorn.Config):
    """The options of uvicorn, the limits on connections, and the connections without a request, longest waiting first."""

    def __init__(self, app: Any, options: ServerOptions) -> None:
        super().__init__(
            app,
            http=Connection,  # for all installations, also those that have httptools
            ws="none",
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            timeout_keep_alive=options.keep_alive,
            timeout_graceful_shutdown=1,
        )
        self.header_timeout = options.header_timeout
        self.max_connections = min(options.limit_connections, max(1, raise_file_limit() - RESERVED_FILES))
        if self.max_connections < options.limit_connections:
            fields = {"connections": self.max_connections, "wanted": options.limit_connections}
            log.warning("the limit of open files lowers the limit of connections", extra={"fields": fields})
        self.waiting: dict[Connection, None] = {}


class Connection(H11Protocol):
    """A connection that is closed if a request head takes too long, or if it waits for one and others need its place."""

    config: Config
    timer: asyncio.TimerHandle | None = None  # runs while the head of a request is awaited, but not between requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.config.waiting[self] = None
        self._start_timer()
        while len(self.connections) > self.config.max_connections and self.config.waiting:
            next(iter(self.config.waiting)).close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.has_request:
            self._stop_waiting()
        elif self.timer is None:
            self._start_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # begins the next request if it has been received
        if not self.has_request and not self.transport.is_closing():
            self.config.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def close(self) -> None:
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.close()

    @property
    def has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_timer(self) -> None:
        self.timer = self.loop.call_later(self.config.header_timeout, self.close)

    def _stop_waiting(self) -> None:
        self.config.waiting.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit, and return it."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows, where sockets are not files
        return 2**31
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 2**31 if hard == resource.RLIM_INFINITY else hard

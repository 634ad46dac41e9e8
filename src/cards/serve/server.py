"""The uvicorn server around the app, with a graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from types import FrameType

import uvicorn
from fastapi import FastAPI

from cards.errors import SettingError
from cards.serve.catalog import Catalog
from cards.serve.connections import Config
from cards.serve.logs import LineLogger, configure

log = logging.getLogger("cards.serve")
FLUSH_SECONDS = 0.3  # for last messages to reach the clients
UNREAD_TIMEOUT = 60_000  # milliseconds until a client that reads nothing is disconnected


class Server(uvicorn.Server):
    """A server that finishes accepted requests before it shuts down.

    After the first signal, new requests fail and accepted ones have up to `drain` seconds. Then, or at the second signal, they
    end with an error. The third signal does not wait until clients have received it.
    """

    def __init__(self, app: FastAPI, close: Callable[[], Awaitable[None]] | None = None) -> None:
        self.catalog: Catalog = app.state.catalog
        super().__init__(Config(app, self.catalog.options))
        self.close, self.drain_deadline = close, float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.drain_deadline = time.monotonic() + (0 if self.catalog.draining else self.catalog.options.drain)
        self.catalog.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.catalog.draining and (self.catalog.idle or time.monotonic() > self.drain_deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            log.info("listening", extra={"fields": {"host": host, "port": port, "url": address(host, port)}})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.catalog.end()
        self.config.timeout_graceful_shutdown = FLUSH_SECONDS  # type: ignore[assignment]  # uvicorn's annotation lacks float
        await super().shutdown(sockets)
        if tasks := list(self.server_state.tasks):  # cancelled by uvicorn
            await asyncio.wait(tasks, timeout=FLUSH_SECONDS / 2)
        self.catalog.tracing.close()
        if self.close is not None:
            await self.close()


def address(host: str, port: int) -> str:
    """Return the address that a browser on this machine opens. A server on all interfaces has it, too."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{local}]' if ':' in local else local}:{port}/"


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet; port 0 selects a free port. Raises SettingError."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SettingError(f"Cannot listen at {host}:{port}: {error.strerror or error}. Use another host or port.") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # on Linux; accepted connections inherit it
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT)
    return listening


def run(app: FastAPI, listening: socket.socket, close: Callable[[], Awaitable[None]]) -> None:
    """Serve until a signal arrives, then call `close` and exit.

    The process does not wait for busy threads, nor for the end of the interpreter, which takes seconds with torch.
    """

    async def close_and_exit() -> None:
        await close()
        log.info("stopped")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)

    configure()  # the models' packages have been imported
    with redirect_stderr(LineLogger()):
        Server(app, close_and_exit).run([listening])

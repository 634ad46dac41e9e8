"""A uvicorn server in a thread, OpenAI clients, sockets, and a check for leaks."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Engine
from cards.errors import RewardError
from cards.events import Prompt, Response
from cards.methods.base import Method
from cards.rewards.base import Reward
from cards.serve.app import make_catalog_app
from cards.serve.options import ServerOptions
from cards.serve.server import Server, bind
from cards.serve.service import Entry, Service
from cards.serve.tracing import Tracing
from cards.serve.weights import ClientWeights

CHAT: list[Any] = [{"role": "user", "content": "What did you think of the film?"}]


@dataclass(frozen=True)
class Running:
    """A running server."""

    port: int
    service: Service
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> openai.OpenAI:
        alone: Any = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))  # keeps no idle connection
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, http_client=alone)

    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def post(self, path: str = "/v1/completions", **how: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, **how)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        samples = (sample for family in self.service.metrics.registry.collect() for sample in family.samples)
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    def send(self, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """Send a request on a new socket. The caller reads the response."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        opened.sendall(head.encode() + data)
        return opened


@contextmanager
def serving(
    engine: Engine,
    reward: Reward | None,
    method: Method,
    tracing: Tracing | None = None,
    weights: ClientWeights | None = None,
    **options: Any,
) -> Iterator[Running]:
    entry = Entry(options.pop("name", engine.name), engine, reward, method, weights=weights)
    with serving_entries([entry], tracing, **options) as running:
        yield running


@contextmanager
def serving_entries(entries: Sequence[Entry], tracing: Tracing | None = None, **options: Any) -> Iterator[Running]:
    app = make_catalog_app(entries, ServerOptions(**options), tracing)
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        until(lambda: server.started)
        yield Running(port, app.state.service, server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for the condition. Raises AssertionError after a generous timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)


def assert_free(running: Running) -> None:
    """Assert that no request holds a place in the queue or a cache slot."""
    gate, engine = running.service.gate, running.service.engine
    until(lambda: gate.idle and not engine.requests and not engine.rows_in_use)
    if isinstance(engine, TransformersEngine):
        until(lambda: not engine.scheduler.waiting and engine.scheduler.slots.idle.all())


class Switch(Reward):
    """A reward that counts the letter a; it waits while `held` and fails while `broken`."""

    name = "switch"
    target = 0.0

    def __init__(self) -> None:
        self.held = self.broken = False
        self.asked = 0
        self.good = 10**9  # scores before it breaks

    async def rate(self, prompt: Prompt, responses: Any) -> list[float]:
        self.asked += 1
        while self.held:
            await asyncio.sleep(0.002)
        if self.broken or self.asked > self.good:
            raise RewardError("The reward server at http://rm:1 went away.")
        return [self._score(response) for response in responses]

    def _score(self, response: Response) -> float:
        return float(response.text.count("a"))

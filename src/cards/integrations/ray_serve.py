"""A Ray Serve application: the server's app on many decoders, a conversation always on the same one while that has room.

`serve run deploy/ray-serve.yaml`, or `ray.serve.run(app({...}))`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from cards.registry import load_engine, load_reward, make_method
from cards.serve.app import make_app
from cards.serve.errors import ApiError
from cards.serve.guard import Guard
from cards.serve.options import ServerOptions

CHARACTERS = 1024  # of a text prompt that count as its beginning
PASSED = {"type", "asgi", "http_version", "method", "scheme", "headers", "client", "server"}
PASSED |= {"root_path", "path", "raw_path", "query_string"}
ENDING = 150  # seconds to finish what runs when a replica is removed: more than the deadline of ServerOptions
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Settings(BaseModel):
    """What the application is made of; replicas, queues and autoscaling are Ray Serve's own to set, for each deployment.

    Decoder number i takes model i and reward i of the lists, from the beginning again after the last: with addresses, each
    decoder stays with one endpoint, whose prefix cache then knows its conversations.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[str] = ["tiny"]
    rewards: list[str] = ["tiny"]  # empty: none
    method: str = "cards"
    settings: dict[str, Any] = {}  # of the method
    loading: dict[str, Any] = {}  # options of the loaders: device, dtype, slots, context
    server: dict[str, Any] = {}  # cards.serve.options.ServerOptions


def app(args: dict[str, Any]) -> serve.Application:
    """The application of these Settings; `serve run` takes them from `args` of its file."""
    settings = Settings(**args)
    bound: serve.Application = Front.bind(settings, Decoder.bind(settings))  # type: ignore[attr-defined]
    return bound


@serve.deployment(
    max_ongoing_requests=64,  # beyond them, a request goes to one of the next two decoders on the ring
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
    request_router_config={"request_router_class": ROUTER},
    graceful_shutdown_timeout_s=ENDING,
)
class Decoder:
    """A stateless decoder behind the server's app: what it holds of a conversation is only ever a cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entry: tuple[str, str | None] | None = None

    async def reconfigure(self, user_config: None, rank: ReplicaRank) -> None:
        """Take the number that Ray gives at the start, and where scaling down has left a gap; what runs ends as it began."""
        models, rewards = self.settings.models, self.settings.rewards
        entry = models[rank.rank % len(models)], rewards[rank.rank % len(rewards)] if rewards else None
        if entry != self.entry:
            self.app = await asyncio.to_thread(self.load, *entry)
        self.entry, self.number = entry, str(rank.rank).encode()

    def load(self, model: str, reward: str | None) -> FastAPI:
        settings = self.settings
        engine = load_engine(model, **settings.loading)
        steers = load_reward(reward, **settings.loading) if reward else None
        return make_app(engine, steers, make_method(settings.method, **settings.settings), ServerOptions(**settings.server))

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """What the app sends in answer to a request; closing the iterator is leaving it."""
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        left, number = asyncio.Event(), self.number

        async def receive() -> Message:
            if not asked:
                await left.wait()
                return {"type": "http.disconnect"}
            return asked.pop()

        task = asyncio.ensure_future(self.app(scope, receive, sent.put))
        task.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-decoder", number)]
                yield message
            await task
        finally:
            left.set()
            await asyncio.gather(task, return_exceptions=True)


@serve.deployment(max_ongoing_requests=10_000, num_replicas=1, graceful_shutdown_timeout_s=ENDING)
@serve.ingress()
class Front:
    """Takes requests in and hands each to a decoder by how its conversation begins."""

    def __init__(self, settings: Settings, decoders: DeploymentHandle[Any]) -> None:
        self.options = ServerOptions(**settings.server)
        self.decoders = decoders.options(stream=True)

    def __serve_build_asgi_app__(self) -> Starlette:
        made = Starlette(exception_handlers={ApiError: refused})
        made.mount("/", self.forward)
        made.add_middleware(Guard, options=self.options)
        return made

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        decoders = self.decoders.options(session_id=beginning(body))
        messages: Any = decoders.answer.remote({name: scope[name] for name in PASSED if name in scope}, body)
        try:
            async for message in messages:
                await send(message)
        finally:
            messages.cancel()


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


def beginning(body: bytes) -> str:
    """A key of how a conversation begins: its system messages and first turn, or the beginning of a text; else nothing.

    Turns that are added later do not change it.
    """
    try:
        asked = json.loads(body)
        first = asked.get("messages") or asked.get("prompt")
    except (ValueError, AttributeError):
        return ""
    if isinstance(first, list):
        turns = (i for i, turn in enumerate(first) if not isinstance(turn, dict) or turn.get("role") != "system")
        first = first[: next(turns, len(first)) + 1]
    elif isinstance(first, str):
        first = first[:CHARACTERS]
    return hashlib.blake2b(json.dumps(first).encode(), digest_size=16).hexdigest() if first else ""

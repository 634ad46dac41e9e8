"""A Ray Serve application: the server's app on many decoders, with the turns of a conversation routed to the same one.

Start it with `serve run deploy/ray-serve.yaml`, or `ray.serve.run(app({...}))`.
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

from cards.placement import reward_for
from cards.registry import load_engine, load_reward, make_method
from cards.serve.app import make_app
from cards.serve.errors import ApiError
from cards.serve.guard import Guard
from cards.serve.keys import Keys
from cards.serve.options import ServerOptions

KEY_CHARACTERS = 1024  # of a text prompt, for its routing key
SCOPE_KEYS = {"type", "asgi", "http_version", "method", "scheme", "headers", "client", "server"}
SCOPE_KEYS |= {"root_path", "path", "raw_path", "query_string"}
SHUTDOWN_SECONDS = 150  # for running requests of a removed replica; more than the deadline of ServerOptions
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Settings(BaseModel):
    """The arguments of the application. Replicas, queues and autoscaling are set per deployment in Ray Serve.

    Decoder number i uses model i and reward i of the lists, modulo their lengths. With addresses, each decoder stays with
    one endpoint, whose prefix cache then contains its conversations.
    """

    model_config = ConfigDict(extra="forbid")

    models: list[str] = ["tiny"]
    rewards: list[str] | None = None  # default: that of `cards serve`; empty: no reward
    method: str = "cards"
    settings: dict[str, Any] = {}  # settings of the method
    loading: dict[str, Any] = {}  # options of the loaders: device, dtype, slots, context
    server: dict[str, Any] = {}  # fields of cards.serve.options.ServerOptions


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application. `args` are the fields of Settings; `serve run` takes them from `args` in its file."""
    settings = Settings(**args)
    bound: serve.Application = Front.bind(settings, DecoderReplica.bind(settings))  # type: ignore[attr-defined]
    return bound


@serve.deployment(
    name="Decoder",
    max_ongoing_requests=64,  # if exceeded, a request goes to one of the next two decoders on the ring
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
    request_router_config={"request_router_class": ROUTER},
    graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
)
class DecoderReplica:
    """A decoder behind the server's app. Its only state is caches, so any replica can serve any request."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.entry: tuple[str, str | None] | None = None

    async def reconfigure(self, user_config: None, rank: ReplicaRank) -> None:
        """Load the models for this rank, which Ray assigns at the start and may change when it scales down.

        Running requests finish with the previous models.
        """
        models, rewards = self.settings.models, self.settings.rewards
        model = models[rank.rank % len(models)]
        reward = None if rewards is None else rewards[rank.rank % len(rewards)] if rewards else "none"
        entry = model, reward
        if entry != self.entry:
            self.app = await asyncio.to_thread(self.load, *entry)
        self.entry, self.number = entry, str(rank.rank).encode()

    def load(self, model: str, reward: str | None) -> FastAPI:
        """Load the models and return the server's app."""
        settings = self.settings
        method = make_method(settings.method, **settings.settings)
        reward = reward_for(model, reward, [method])
        engine = load_engine(model, **settings.loading)
        loaded_reward = None if reward == "none" else load_reward(reward, **settings.loading)
        return make_app(engine, loaded_reward, method, ServerOptions(**settings.server))

    async def respond(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Yield the messages that the app sends for a request. Closing the iterator disconnects the client."""
        outgoing: asyncio.Queue[Message | None] = asyncio.Queue()
        incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        disconnected, number = asyncio.Event(), self.number

        async def receive() -> Message:
            if not incoming:
                await disconnected.wait()
                return {"type": "http.disconnect"}
            return incoming.pop()

        task = asyncio.ensure_future(self.app(scope, receive, outgoing.put))
        task.add_done_callback(lambda _: outgoing.put_nowait(None))
        try:
            while (message := await outgoing.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-decoder", number)]
                yield message
            await task
        finally:
            disconnected.set()
            await asyncio.gather(task, return_exceptions=True)


@serve.deployment(max_ongoing_requests=10_000, num_replicas=1, graceful_shutdown_timeout_s=SHUTDOWN_SECONDS)
@serve.ingress()
class Front:
    """The entry point: forwards each request to a decoder chosen by the key of its conversation."""

    def __init__(self, settings: Settings, decoders: DeploymentHandle[Any]) -> None:
        self.options = ServerOptions(**settings.server)
        self.decoders = decoders.options(stream=True)

    def __serve_build_asgi_app__(self) -> Starlette:
        frontend = Starlette(exception_handlers={ApiError: error_response})
        frontend.mount("/", self.forward)
        frontend.add_middleware(Guard, options=self.options, keys=Keys(self.options.api_keys))
        return frontend

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        decoders = self.decoders.options(session_id=conversation_key(body))
        messages: Any = decoders.respond.remote({name: scope[name] for name in SCOPE_KEYS if name in scope}, body)
        try:
            async for message in messages:
                await send(message)
        finally:
            messages.cancel()


async def error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response


def conversation_key(body: bytes) -> str:
    """Return a key that later turns do not change, or "" for a body without a prompt.

    It is a hash of the system messages and the first turn, or of the beginning of a text prompt.
    """
    try:
        fields = json.loads(body)
        first = fields.get("messages") or fields.get("prompt")
    except (ValueError, AttributeError):
        return ""
    if isinstance(first, list):
        turns = (i for i, turn in enumerate(first) if not isinstance(turn, dict) or turn.get("role") != "system")
        first = first[: next(turns, len(first)) + 1]
    elif isinstance(first, str):
        first = first[:KEY_CHARACTERS]
    return hashlib.blake2b(json.dumps(first).encode(), digest_size=16).hexdigest() if first else ""

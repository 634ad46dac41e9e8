"""Engines at the addresses of test servers, and the expected output of the served model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from cards.backends.http.openai import OpenAIEngine
from cards.backends.local.engine import TransformersEngine
from cards.engines.ask import Ask
from cards.events import Message, Response, Segment
from cards.registry import load_engine
from cards.sampling import Sampling, uniforms
from helpers.model_server import LM, Faulty, running

TALK = [Message(role="user", content="What did you think of the new Star Wars film?")]


@asynccontextmanager
async def connected(
    server: LM, *, tokenizer: str | None = "tiny", **options: Any
) -> AsyncIterator[tuple[OpenAIEngine, Faulty]]:
    door = server.app()
    with running(door) as address:
        engine = load_engine(address + "/v1", tokenizer=tokenizer)
        assert isinstance(engine, OpenAIEngine)
        engine.client.backoff = 0.001
        try:
            yield engine, door
        finally:
            await engine.aclose()


class Local(TransformersEngine):
    """Query the served model like the server: each candidate has a separate seed."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.__dict__ |= engine.__dict__

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        for i in range(ask.first, ask.first + ask.n):
            seed = int(uniforms(ask.seed, ask.segment, i, 1)[0] * 2**31)
            async with aclosing(super().propose(replace(ask, seed=seed, segment=0, first=0, n=1))) as batches:
                async for batch in batches:
                    yield batch


def ask_of(engine: Any, **options: Any) -> Ask:
    prompt: Any = TALK if engine.chats else "The film was"
    settings: dict[str, Any] = {"max_tokens": 24, "sampling": Sampling(0.8, 40)} | options
    return Ask(engine.encode(prompt), Response(), **settings)


async def proposals(engine: Any, ask: Ask) -> list[Segment]:
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]

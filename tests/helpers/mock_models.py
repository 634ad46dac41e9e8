"""Helpers for tests of the decoder: a mock engine, rewards, a method with short segments, and a check for leaks."""

from __future__ import annotations

import asyncio
from typing import Any

from cards import CARDS, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.engines.mock import MockEngine
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from helpers.waiting import eventually

CARDS_IN_THREES = CARDS(target=1.5, beta=0.5, temperature=1.0, top_k=None, boundary=FixedLength(maximum=3), width=2)


def mock(**options: Any) -> MockEngine:
    return MockEngine(lambda ids: [0.25 + 0.01 * (len(ids) % 3), 0.25, 0.25, 0.2], "abc ", **options)


async def count_of_b(prompt: str, response: str) -> float:
    return response.count("b") / 2


async def assert_free(engine: TransformersEngine) -> None:
    """Assert that no request holds a cache slot."""
    scheduler = engine.scheduler
    await eventually(lambda: not (engine.requests or scheduler.active or scheduler.waiting), engine.settle)
    assert scheduler.slots.idle.all()


class Hangs(Reward):
    """A reward that scores a few texts and then never returns."""

    name = "hangs"

    def __init__(self, after: int, target: float | None = 0.0) -> None:
        self.left, self.target = after, target
        self.waiting = asyncio.Event()

    async def rate(self, prompt: Prompt, responses: list[Response]) -> list[float]:  # type: ignore[override]
        if self.left == 0:
            self.waiting.set()
            await asyncio.Event().wait()
        self.left -= 1
        return [9.0] * len(responses)

"""Shared parts of the tests of methods with a second LM: models, rewards, laws and traces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cards import Decoder, Result
from cards.engines.mock import MockEngine
from cards.events import Accepted, Event, Prompt, Proposed, Rejected, Response, Scored
from cards.rewards.base import Reward
from helpers.letter_world import END, LETTERS, Ids, Law, next_token, segments, value

Model = Callable[[Ids], Sequence[float]]
PROMPT = (0,)


def other(seed: int) -> Model:
    return lambda ids: [float(x) for x in np.random.default_rng([seed, *ids]).dirichlet([0.8] * 4)]


def engine(model: Model = next_token, end: bool = True) -> MockEngine:
    return MockEngine(model, LETTERS, end=LETTERS[END] if end else None)


async def value_of(prompt: str, response: str) -> float:
    return value(response)


class Scripted(Reward):
    """Return rewards by the text of the response; unknown texts are an error."""

    name = "scripted"
    target = 1.0

    def __init__(self, rewards: dict[str, float]) -> None:
        self.rewards, self.asked = rewards, list[str]()

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        self.asked += [r.text for r in responses]
        return [self.rewards[r.text] for r in responses]


def decoded(decoder: Decoder, draws: int, **options: Any) -> list[Result]:
    async def one(seed: int) -> Result:
        return await decoder.agenerate("a", seed=seed, **options)

    async def all_of_them() -> list[Result]:
        return [r for start in range(0, draws, 50) for r in await asyncio.gather(*map(one, range(start, start + 50)))]

    return asyncio.run(all_of_them())


def trace(decoder: Decoder, **options: Any) -> tuple[list[tuple[str, int, int, str]], Result]:
    events: list[Event] = list(decoder.stream("a", **options))
    shown = [
        (type(e).__name__, e.position, e.candidate, e.segment.text)
        for e in events
        if isinstance(e, Proposed | Scored | Rejected | Accepted)
    ]
    return shown, events[-1].result  # type: ignore[union-attr]


def texts(model: Model, limit: int) -> Law:
    """Return every response to PROMPT of at most this many tokens, with its probability."""
    return segments(limit, model, after=PROMPT)

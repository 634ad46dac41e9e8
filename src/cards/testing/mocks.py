"""Models without weights: a random next-token law, an engine that draws from it, and a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from cards.engines.mock import MockEngine
from cards.events import Prompt, Response
from cards.rewards.base import Reward

LETTERS = "abcd"  # `d` ends a response
PROMPTS = ("a", "ab", "bca", "cab")  # in these letters


def random_model(seed: int = 1, concentration: Sequence[float] = (1.0, 1.0, 1.0, 0.5)) -> Callable[[tuple[int, ...]], Any]:
    """Return next-token probabilities that are a fixed random function of the tokens so far: some sharp, some flat."""

    @cache
    def probabilities(ids: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(np.random.default_rng([seed, *ids]).dirichlet(concentration).tolist())

    return probabilities


def random_engine(seed: int = 1, **options: Any) -> MockEngine:
    """Return a MockEngine on `random_model(seed)`, with the letters a, b, c and d as tokens; `d` ends a response."""
    return MockEngine(random_model(seed), LETTERS, end=LETTERS[-1], **options)


@cache
def random_value(text: str) -> float:
    """Return a fixed standard normal number for a text; 0 for the empty text."""
    return float(np.random.default_rng([2, *text.encode()]).normal()) if text else 0.0


class MockReward(Reward):
    """Scores a response by its text alone (`random_value` by default) and keeps the texts that it was asked about."""

    name = "mock reward"

    def __init__(self, value: Callable[[str], float] = random_value, *, target: float | None = 1.0) -> None:
        self.value, self.target = value, target
        self.scored: list[str] = []

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        self.scored += [response.text for response in responses]
        return [self.value(response.text) for response in responses]

"""Mock models without weights: random next-token probabilities, an engine that samples from them, and a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from cards.engines.mock import MockEngine
from cards.events import Prompt, Response
from cards.rewards.base import Reward

LETTERS = "abcd"  # `d` ends a response
PROMPTS = ("a", "ab", "bca", "cab")


def random_model(seed: int = 1, concentration: Sequence[float] = (1.0, 1.0, 1.0, 0.5)) -> Callable[[tuple[int, ...]], Any]:
    """Return a fixed random function from the tokens so far to next-token probabilities, some sharp and some flat."""

    @cache
    def probabilities(ids: tuple[int, ...]) -> tuple[float, ...]:
        return tuple(np.random.default_rng([seed, *ids]).dirichlet(concentration).tolist())

    return probabilities


def random_engine(seed: int = 1, **options: Any) -> MockEngine:
    """Return a MockEngine of `random_model(seed)` whose tokens are a, b, c and d; `d` ends a response."""
    return MockEngine(random_model(seed), LETTERS, end=LETTERS[-1], **options)


@cache
def random_value(text: str) -> float:
    """Return a fixed standard normal number for a text, and 0 for the empty text."""
    return float(np.random.default_rng([2, *text.encode()]).normal()) if text else 0.0


class MockReward(Reward):
    """A reward that depends only on the text (`random_value` by default). `scored` records the texts."""

    name = "mock reward"

    def __init__(self, value: Callable[[str], float] = random_value, *, target: float | None = 1.0) -> None:
        self.value, self.target = value, target
        self.scored: list[str] = []

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        self.scored += [response.text for response in responses]
        return [self.value(response.text) for response in responses]

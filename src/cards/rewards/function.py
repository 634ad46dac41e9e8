"""A Python function as a reward."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cards.errors import CardsError, RewardError
from cards.events import Prompt, Response
from cards.rewards.base import Reward, excerpt
from cards.rewards.scale import Scale

Scorer = Callable[[str, str], float] | Callable[[str, str], Awaitable[float]]


class FunctionReward(Reward):
    """A function reward(prompt, response) -> float, async or plain. Plain functions run in a thread.

    `scale` is "probability" if the function returns numbers between 0 and 1. Exceptions of the function become RewardErrors.
    """

    def __init__(
        self, function: Scorer, *, target: float | None = None, scale: Scale = "unbounded", name: str | None = None
    ) -> None:
        self.function, self.target, self.scale = function, target, scale
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await asyncio.gather(*(self._rate(prompt.text, response.text) for response in responses))

    async def _rate(self, prompt: str, response: str) -> float:
        try:
            direct = inspect.iscoroutinefunction(self.function)
            value: Any = self.function(prompt, response) if direct else await asyncio.to_thread(self.function, prompt, response)
            return float(await value if inspect.isawaitable(value) else value)
        except CardsError:
            raise
        except Exception as error:
            failure = RewardError(
                f"Reward function {self.name!r} raised {type(error).__name__}: {error} for the response {excerpt(response)}. "
                "It must return a number for every (prompt, response)."
            )
            failure.quoted = (excerpt(response),)
            raise failure from error

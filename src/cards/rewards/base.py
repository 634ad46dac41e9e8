"""The Reward contract: it scores whole or incomplete answers and keeps nothing for its caller."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from cards.errors import RewardError, SettingError
from cards.events import Prompt, Response
from cards.parts import Composite
from cards.usage import booked_as, current_account


class Reward(Composite, ABC):
    """A score of a response to a prompt; higher is better. `target` is a sensible r* for it, where one is known."""

    kind: ClassVar[str] = ""  # how a reward of this class is named, `kind:details`; empty if it cannot be
    name: str
    target: float | None = None
    context: int | None = None  # tokens that prompt and answer may have together, where there is a limit

    async def score(self, prompt: Prompt, responses: Sequence[Response]) -> list[float]:
        """Rewards of the responses, in order; the empty response scores the bare prompt.

        Raises RewardError, naming the text, if a reward is not a finite number.
        """
        return await self._counted(self.rate(prompt, responses), prompt, responses)

    async def score_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> list[float]:
        """Rewards of `followers`, each of them `response` and one token more; value heads need one pass for all of them."""
        return await self._counted(self.rate_next(prompt, response, followers), prompt, followers)

    async def _counted(
        self, rating: Coroutine[Any, Any, Sequence[float]], prompt: Prompt, responses: Sequence[Response]
    ) -> list[float]:
        start = time.perf_counter()
        with booked_as("rm"):
            rewards = [float(r) for r in await rating]
        if not any(isinstance(part, Reward) for part in self.parts):  # else they have counted themselves
            current_account().usage.add(rm_calls=len(responses), rm_seconds=time.perf_counter() - start)
        if len(rewards) != len(responses):
            raise RewardError(f"Reward {self.name!r} gave {len(rewards)} scores for {len(responses)} responses.")
        for reward, response in zip(rewards, responses, strict=True):
            if not math.isfinite(reward):
                raise RewardError(
                    f"Reward {self.name!r} gave {reward} for {excerpt(response.text)} after the prompt "
                    f"{excerpt(prompt.text)}; a reward must be a finite number."
                )
        return rewards

    @classmethod
    def named(cls, details: str, **options: Any) -> Reward:
        """The reward that `kind:details` names; options are those of loaders. Raises SettingError or UnknownNameError."""
        raise SettingError(f"A reward of the kind {cls.kind!r} cannot be made from the text {details!r}.")

    @abstractmethod
    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        """What a subclass implements; callers use `score`, which checks and counts."""

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        """The same behind `score_next`, for rewards that can do it at once."""
        return await self.rate(prompt, followers)


def excerpt(text: str, length: int = 80) -> str:
    """The end of a text, quoted, for messages."""
    return repr(text if len(text) <= length else "..." + text[-length:])

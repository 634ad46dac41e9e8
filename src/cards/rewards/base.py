"""The Reward contract: score complete or incomplete responses, without state that callers can observe."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from cards.errors import RewardError, SettingError
from cards.events import Prompt, Response
from cards.parts import Composite
from cards.rewards.scale import Scale
from cards.usage import booked_as, current_account

ROUNDING = 1e-6  # rewards between 0 and 1 may be outside by this


class Reward(Composite, ABC):
    """A score for responses to a prompt; higher is better.

    `scale` says what the numbers are: methods that need probabilities convert the others. `target` is the suggested target
    reward r*, or None. `context` is the maximum number of tokens of prompt and response together, or None. Subclasses implement
    `rate`, and `rate_next` if they can score next tokens together.
    """

    kind: ClassVar[str] = ""  # the prefix in names of the form `kind:details`; empty for classes without such names
    literal: ClassVar[bool] = False  # whether `details` are free text, so that + and ? in them have no special meaning
    one_tokenizer: ClassVar[bool] = False  # whether the models in `details` must have the same tokenizer
    wraps: ClassVar[bool] = False  # whether `details` are the name of another reward, which may have options
    name: str
    scale: Scale = "unbounded"
    target: float | None = None
    context: int | None = None

    async def score(self, prompt: Prompt, responses: Sequence[Response]) -> list[float]:
        """Return the rewards of the responses, in order. The empty response stands for the bare prompt.

        The text of a response includes the tail that is held back because it may start a stop string.
        Raises RewardError if a reward is not a finite number, or is outside its scale.
        """
        responses = [response.decoded for response in responses]
        return await self._counted(self.rate(prompt, responses), prompt, responses)

    async def score_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> list[float]:
        """Return the rewards of `followers`, each of which is `response` and one more token.

        Raises RewardError if a reward is not a finite number.
        """
        followers = [follower.decoded for follower in followers]
        return await self._counted(self.rate_next(prompt, response.decoded, followers), prompt, followers)

    async def _counted(
        self, rating: Coroutine[Any, Any, Sequence[float]], prompt: Prompt, responses: Sequence[Response]
    ) -> list[float]:
        start = time.perf_counter()
        with booked_as("rm"):
            rewards = [float(r) for r in await rating]
        if not any(isinstance(part, Reward) for part in self.parts):  # otherwise the parts count their own calls
            current_account().usage.add(rm_calls=len(responses), rm_seconds=time.perf_counter() - start)
        if len(rewards) != len(responses):
            raise RewardError(
                f"Reward {self.name!r} must return {len(responses)} scores for {len(responses)} responses, got {len(rewards)}."
            )
        for reward, response in zip(rewards, responses, strict=True):
            if not math.isfinite(reward):
                texts = excerpt(response.text), excerpt(prompt.text)
                error = RewardError(
                    f"Reward {self.name!r} must return finite numbers, got {reward} for the response {texts[0]} to the prompt "
                    f"{texts[1]}."
                )
                error.quoted = texts
                raise error
            if self.scale == "probability" and not -ROUNDING <= reward <= 1 + ROUNDING:
                raise RewardError(
                    f"Reward {self.name!r} has the scale 'probability', so it must return numbers between 0 and 1, got "
                    f"{reward}. Set its scale to 'unbounded'."
                )
        return rewards

    @classmethod
    def named(cls, details: str, **options: Any) -> Reward:
        """Return the reward named `kind:details`, given loader options. Raises SettingError or UnknownNameError."""
        raise SettingError(f"A reward of kind {cls.kind!r} cannot be created by name, got {details!r}. Create it in Python.")

    @classmethod
    def models_in(cls, details: str) -> list[tuple[str, str]]:
        """Return the names of the models in `kind:details`, each with `engine` or `reward`. They are checked before loading."""
        return []

    @abstractmethod
    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        """Compute the rewards of the responses, in order. Called by `score`, which checks and counts them."""

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        """Compute the rewards of `followers`, in order. Called by `score_next`; override it to use fewer model calls."""
        return await self.rate(prompt, followers)


def excerpt(text: str, length: int = 80) -> str:
    """Return the last `length` characters of a text, quoted, for messages."""
    return repr(text if len(text) <= length else "..." + text[-length:])

"""Process rewards: each finished step of a response is scored, and the scores are combined."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from cards.errors import check
from cards.events import FinishReason, Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.scale import to_probability

Join = Literal["last", "min", "mean", "product"]
JOINS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
}
CACHED_STEPS = 4096  # capacity of the cache of step scores
Key = tuple[str, str, str, FinishReason | None]


class ProcessReward(Reward):
    """A reward that combines the rewards of the response up to the end of each finished step.

    A step ends after `delimiter`, or with the response. `join` selects the last step reward, the lowest, their mean or their
    product. `squash` turns each into a probability first, which is needed for the product of log-odds; rewards that are
    probabilities stay as they are. Without a finished step, the bare prompt is scored. Step rewards are cached. The inner
    reward reads text instead of the LM's tokens, because a step may end inside a token.
    """

    kind: ClassVar[str] = "process"
    wraps: ClassVar[bool] = True

    def __init__(
        self,
        reward: Reward,
        delimiter: str = "\n\n",
        join: Join = "last",
        *,
        squash: bool = False,
        target: float | None = None,
    ) -> None:
        check(bool(delimiter), "delimiter must be a nonempty text, got ''.")
        check(join in JOINS, f"join must be one of {', '.join(JOINS)}, got {join!r}.")
        self.reward, self.delimiter, self.join, self.squash = reward, delimiter, join, squash
        self.scale = "probability" if squash else reward.scale
        if join == "product" and self.scale == "logit":  # a product of log-odds is no log-odds
            self.scale = "unbounded"
        self.target, self.context, self.parts = target, reward.context, (reward,)
        self.name = f"process:{reward.name}"
        self.cached: dict[Key, float] = {}

    @classmethod
    def named(
        cls,
        details: str,
        *,
        delimiter: str = "\n\n",
        join: Join = "last",
        squash: bool = False,
        target: float | None = None,
        **options: Any,
    ) -> ProcessReward:
        """Return the reward for `NAME`, the name of the inner reward, which gets `options`."""
        from cards.rewards.loader import load_reward

        return cls(load_reward(details, **options), delimiter, join, squash=squash, target=target)

    @classmethod
    def models_in(cls, details: str) -> list[tuple[str, str]]:
        return [(details, "reward")]

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        plain = replace(prompt, vocabulary="", template=None)  # so that the inner reward does not read token_ids
        steps_by_response = [finished_steps(response, self.delimiter) or [Response()] for response in responses]

        def key(step: Response) -> Key:
            return prompt.text, repr(prompt.messages), step.text, step.finish_reason

        wanted = {key(step): step for steps in steps_by_response for step in steps}
        found = {k: self.cached[k] for k in wanted if k in self.cached}
        if new := {k: step for k, step in wanted.items() if k not in found}:
            scores = await self.reward.score(plain, list(new.values()))
            fresh = dict(
                zip(new, [to_probability(r, self.reward.scale) for r in scores] if self.squash else scores, strict=True)
            )
            found |= fresh
            self.cached |= fresh
            while len(self.cached) > CACHED_STEPS:
                del self.cached[next(iter(self.cached))]
        return [JOINS[self.join]([found[key(step)] for step in steps]) for steps in steps_by_response]

    def forget(self) -> None:
        self.cached.clear()
        super().forget()


def finished_steps(response: Response, delimiter: str) -> list[Response]:
    """Return the response up to the end of each finished step. Steps of white space are skipped."""
    text, ends, start = response.text, list[int](), 0
    while (at := text.find(delimiter, start)) >= 0:
        if text[start:at].strip():
            ends.append(at + len(delimiter))
        start = at + len(delimiter)
    steps = [Response(text[:end], response.token_ids) for end in ends]
    if response.finish_reason is not None and text[start:].strip():
        steps.append(response)
    return steps

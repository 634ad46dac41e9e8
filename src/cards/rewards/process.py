"""Process rewards: every finished step of an answer is judged, and the judgements are joined."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from cards.errors import check
from cards.events import FinishReason, Prompt, Response
from cards.rewards.base import Reward

Join = Literal["last", "min", "mean", "product"]
JOINS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": statistics.fmean,
    "product": math.prod,
}
KEPT = 4096  # scores of steps
Key = tuple[str, str, str, FinishReason | None]


class ProcessReward(Reward):
    """Joins the rewards of the answer up to the end of each finished step; without one, the reward of the bare prompt.

    A step ends behind `delimiter`, or with the answer. `join` takes the last step's reward, the lowest, their mean or their
    product; `squash` puts each through a sigmoid first. A step's reward is kept, not asked for again. `reward` reads
    texts here, not the LM's tokens, for a step may end inside a token.
    """

    kind: ClassVar[str] = "process"

    def __init__(
        self,
        reward: Reward,
        delimiter: str = "\n\n",
        join: Join = "last",
        *,
        squash: bool = False,
        target: float | None = None,
    ) -> None:
        check(bool(delimiter), "The delimiter of steps must not be empty.")
        check(join in JOINS, f"join must be one of {', '.join(JOINS)}, not {join!r}.")
        self.reward, self.delimiter, self.join, self.squash = reward, delimiter, join, squash
        self.target, self.context, self.parts = target, reward.context, (reward,)
        self.name = f"process:{reward.name}"
        self.known: dict[Key, float] = {}

    @classmethod
    def named(cls, details: str, **options: Any) -> ProcessReward:
        """`process:NAME`, with the name of another reward."""
        from cards.rewards.loader import load_reward

        return cls(load_reward(details, **options))

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        plain = replace(prompt, vocabulary="", template=None)  # so that nobody reads token_ids
        answers = [finished_steps(response, self.delimiter) or [Response()] for response in responses]

        def key(step: Response) -> Key:
            return prompt.text, repr(prompt.messages), step.text, step.finish_reason

        wanted = {key(step): step for steps in answers for step in steps}
        found = {k: self.known[k] for k in wanted if k in self.known}
        if new := {k: step for k, step in wanted.items() if k not in found}:
            scores = await self.reward.score(plain, list(new.values()))
            fresh = dict(zip(new, map(sigmoid, scores) if self.squash else scores, strict=True))
            found |= fresh
            self.known |= fresh
            while len(self.known) > KEPT:
                del self.known[next(iter(self.known))]
        return [JOINS[self.join]([found[key(step)] for step in steps]) for steps in answers]

    def forget(self) -> None:
        self.known.clear()
        super().forget()


def finished_steps(response: Response, delimiter: str) -> list[Response]:
    """The response up to the end of each finished step; steps of white space are none."""
    text, ends, start = response.text, list[int](), 0
    while (at := text.find(delimiter, start)) >= 0:
        if text[start:at].strip():
            ends.append(at + len(delimiter))
        start = at + len(delimiter)
    steps = [Response(text[:end], response.token_ids) for end in ends]
    if response.finish_reason is not None and text[start:].strip():
        steps.append(response)
    return steps


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

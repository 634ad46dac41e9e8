"""Step judges: causal LMs that say after a special token whether the step before it is good."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.engines import as_engine, own_prompt
from cards.rewards.process import finished_steps, sigmoid


class StepTokenReward(Reward):
    """P(good) / (P(good) + P(bad)) of the token after `tag`, which is written behind every finished step; 0.5 without one.

    This judges the last finished step, as Math-Shepherd's models do (arXiv 2312.08935); ProcessReward joins all of
    them. `good` and `bad` stand for their last tokens, `delimiter` ends a step and is written behind its tag.
    """

    kind: ClassVar[str] = "steps"

    target = 0.5

    def __init__(
        self,
        model: str | Engine,
        *,
        good: str = "+",
        bad: str = "-",
        tag: str = " \u043a\u0438",
        delimiter: str = "\n\n",
        **options: Any,
    ) -> None:
        self.model = as_engine(model, **options)
        self.parts = (self.model,)
        self.tag, self.delimiter = tag, delimiter
        self.good, self.bad = (_last_token(self.model, sign) for sign in (good, bad))
        check(self.good != self.bad, f"{good!r} and {bad!r} are one token to {self.model.name!r}.")
        self.context, self.name = self.model.context, f"steps:{self.model.name}"

    @classmethod
    def named(cls, details: str, **options: Any) -> StepTokenReward:
        return cls(details, **options)

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        own = own_prompt(self.model, prompt)
        return await asyncio.gather(*(self._rate(own, response) for response in responses))

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        if not (text := self.tagged(response)):
            return 0.5
        [logits] = await self.model.logits(prompt, Response(text, self.model.tokenize(text)))
        return sigmoid(float(logits[self.good]) - float(logits[self.bad]))

    def tagged(self, response: Response) -> str:
        """The finished steps, a tag behind each; it ends in the last one's tag."""
        ends = [0, *(len(step.text) for step in finished_steps(response, self.delimiter))]
        steps = [response.text[a:b].removesuffix(self.delimiter) for a, b in pairwise(ends)]
        return self.delimiter.join(step + self.tag for step in steps)


def _last_token(model: Engine, sign: str) -> int:
    ids = model.tokenize(sign)
    check(bool(ids), f"{sign!r} is no token to {model.name!r}.")
    return ids[-1]

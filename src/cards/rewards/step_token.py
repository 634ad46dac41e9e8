"""Step-token rewards: causal LMs that were trained to mark each step as good or bad."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.errors import check
from cards.events import Prompt, Response
from cards.rewards.engines import EngineReward, encode_prompt
from cards.rewards.process import finished_steps
from cards.rewards.scale import sigmoid


class StepTokenReward(EngineReward):
    """The reward P(good) / (P(good) + P(bad)) of the last finished step, as in Math-Shepherd (arXiv 2312.08935).

    `tag` is written after every finished step, and P is the distribution of the next token. The reward is 0.5 without a
    finished step. ProcessReward can combine the rewards of all steps. `good` and `bad` stand for their last tokens.
    `delimiter` ends a step and is written after its tag.
    """

    kind: ClassVar[str] = "steps"

    scale = "probability"

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
        super().__init__(model, target=0.5, **options)
        self.tag, self.delimiter = tag, delimiter
        self.good, self.bad = (_last_token(self.model, mark) for mark in (good, bad))
        check(self.good != self.bad, f"good and bad must be different tokens of {self.model.name!r}, got {good!r} and {bad!r}.")

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        encoded = encode_prompt(self.model, prompt)
        return await asyncio.gather(*(self._rate(encoded, response) for response in responses))

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        if not (text := self.tagged(response)):
            return 0.5
        [logits] = await self.model.logits(prompt, Response(text, self.model.tokenize(text)))
        return sigmoid(float(logits[self.good]) - float(logits[self.bad]))

    def tagged(self, response: Response) -> str:
        """Return the finished steps with a tag after each. The text ends with the last tag."""
        ends = [0, *(len(step.text) for step in finished_steps(response, self.delimiter))]
        steps = [response.text[a:b].removesuffix(self.delimiter) for a, b in pairwise(ends)]
        return self.delimiter.join(step + self.tag for step in steps)


def _last_token(model: Engine, mark: str) -> int:
    ids = model.tokenize(mark)
    check(bool(ids), f"good and bad must be tokens of {model.name!r}, got {mark!r}.")
    return ids[-1]

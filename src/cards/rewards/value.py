"""Value heads: the value of every possible next token from one forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.engines import as_engine, retokenize


class ValueReward(Reward):
    """The value V(x, y) from a model whose output over the vocabulary is V(x, y + v) for each next token v.

    `score_next` needs one pass for all next tokens. The bare prompt is scored by the value of its last token.
    """

    kind: ClassVar[str] = "value"

    def __init__(self, model: str | Engine, *, target: float | None = None, **options: Any) -> None:
        self.model, self.target = as_engine(model, **options), target
        self.parts = (self.model,)
        self.context, self.name = self.model.context, f"value:{self.model.name}"

    @classmethod
    def named(cls, details: str, **options: Any) -> ValueReward:
        return cls(details, **options)

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        prompt, responses = retokenize(self.model, prompt, responses)
        texts = [(*prompt.token_ids, *response.token_ids) for response in responses]
        before = [replace(prompt, token_ids=text[:-1]) for text in texts]
        values = await asyncio.gather(*(self.model.logits(text, Response()) for text in before))
        return [float(row[0, text[-1]]) for row, text in zip(values, texts, strict=True)]

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        if prompt.vocabulary != self.model.vocabulary:
            return await self.rate(prompt, followers)
        [values] = await self.model.logits(prompt, response)
        return [float(values[follower.token_ids[-1]]) for follower in followers]

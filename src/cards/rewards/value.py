"""Value heads: one number for every possible next token, from one pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.engines import as_engine, in_tokens_of


class ValueReward(Reward):
    """V(x, y): what a model gives its last token, where its outputs over the vocabulary are values, V(x, y + v) for each v.

    `score_next` takes one pass for all that may follow. The bare prompt has the value of its last token.
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
        prompt, responses = in_tokens_of(self.model, prompt, responses)
        texts = [(*prompt.token_ids, *response.token_ids) for response in responses]
        before = [replace(prompt, token_ids=text[:-1]) for text in texts]
        values = await asyncio.gather(*(self.model.logits(text, Response()) for text in before))
        return [float(row[0, text[-1]]) for row, text in zip(values, texts, strict=True)]

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        if prompt.vocabulary != self.model.vocabulary:
            return await self.rate(prompt, followers)
        [values] = await self.model.logits(prompt, response)
        return [float(values[follower.token_ids[-1]]) for follower in followers]

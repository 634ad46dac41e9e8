"""Value heads: the value of every possible next token from one forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from cards.events import Prompt, Response
from cards.rewards.engines import EngineReward, retokenize


class ValueReward(EngineReward):
    """The value V(x, y) from a model whose output over the vocabulary is V(x, y + v) for each next token v.

    `score_next` needs one pass for all next tokens. The bare prompt is scored by the value of its last token.
    """

    kind: ClassVar[str] = "value"

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

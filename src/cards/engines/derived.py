"""The base of engines that draw tokens from the logits of other engines: drafts and mixtures."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import ClassVar

from cards.engines.base import Ask, Engine
from cards.engines.ordered import in_order
from cards.events import Message, Prompt, Response, Segment


class DerivedEngine(Engine):
    """An engine with the tokenizer, the prompts and the limits of `engine`.

    Each candidate reads logits for itself, and the engines that it reads batch the reads of all candidates.
    """

    has: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "logprobs", "shaping"})

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.context, self.rows, self.chats = engine.name, engine.context, engine.rows, engine.chats
        self.entropy_threshold, self.vocabulary = engine.entropy_threshold, engine.vocabulary
        self.vocab_size, self.tokenizer, self.end_ids = engine.vocab_size, engine.tokenizer, engine.end_ids
        self.repetition_penalty = engine.repetition_penalty

    @abstractmethod
    async def _candidate(self, ask: Ask, number: int, wanted: asyncio.Event) -> Segment:
        """Draw a candidate. Wait for `wanted` before each step, because candidates pause until the caller waits for more."""

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        wanted = asyncio.Event()
        candidates = [self._candidate(ask, ask.first + i, wanted) for i in range(ask.n)]
        async with aclosing(in_order(candidates, wanted)) as batches:
            async for batch in batches:
                yield batch

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        return self.engine.encode(prompt)

    def tokenize(self, text: str) -> tuple[int, ...]:
        return self.engine.tokenize(text)

    @property
    def rows_in_use(self) -> int:
        return self.engine.rows_in_use

    @property
    def requests(self) -> int:
        return self.engine.requests

    @requests.setter
    def requests(self, count: int) -> None:
        self.engine.requests = count

    def without_layers(self, share: float) -> Engine:
        return self.engine.without_layers(share)

    def width(self, acceptance_rate: float, most: int) -> int:
        return self.engine.width(acceptance_rate, most)


def after(response: Response, tokens: Sequence[int]) -> Response:
    """Return the response with these tokens and without text, as input of models."""
    return Response(token_ids=(*response.token_ids, *tokens))

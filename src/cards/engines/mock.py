"""A mock engine for tests, whose language model is a function of the tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cards.engines.base import Ask, Engine
from cards.engines.text import check_fits
from cards.errors import check
from cards.events import Message, Prompt, Response, Segment
from cards.prompts import Chat, check_messages, check_text
from cards.sampling import distribution, pick, uniforms
from cards.usage import current_account

Model = Callable[[tuple[int, ...]], Sequence[float]]


class MockEngine(Engine):
    """An engine whose model is a function from the token ids so far to the probabilities of the next token.

    `model` must be deterministic. It returns one number for each token: a probability, or a logit with `logits=True`. The text
    of token i is vocabulary[i]. `end` is the token that ends a response; its text is empty. Prompts are split into the longest
    matching tokens, and text outside the vocabulary is dropped. All candidates of an ask arrive in one list.
    Raises SettingError.
    """

    has: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "logprobs", "shaping"})

    def __init__(
        self,
        model: Model,
        vocabulary: Sequence[str],
        *,
        end: str | None = None,
        logits: bool = False,
        context: int = 512,
        rows: int = 32,
        name: str = "mock",
    ) -> None:
        check(
            len(set(vocabulary)) == len(vocabulary) and all(vocabulary),
            f"Tokens must be distinct and not empty, got {vocabulary!r}.",
        )
        check(end is None or end in vocabulary, f"The end token must be in the vocabulary, got {end!r}.")
        self.model, self.tokens, self.raw = model, tuple(vocabulary), logits
        self.end_id = None if end is None else self.tokens.index(end)
        self.tokenizer, self.end_ids = self, frozenset(() if self.end_id is None else (self.end_id,))
        self.context, self.rows, self.name = context, rows, name
        self.vocabulary, self.vocab_size = f"mock {self.tokens}", len(self.tokens)
        self._next = lru_cache(4096)(self.next_logits)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        return "".join(self.tokens[t] for t in token_ids if t != self.end_id)

    def next_logits(self, token_ids: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the logits [vocabulary] of the next token. Raises SettingError."""
        values = list(self.model(token_ids))
        check(len(values) == len(self.tokens), f"The model must return {len(self.tokens)} numbers, got {len(values)}.")
        if not self.raw:
            values = [math.log(p) if p > 0 else -math.inf for p in values]
        return np.array(values, np.float64)

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        messages = None if isinstance(prompt, str) else check_messages(prompt)
        begun = ""
        text = (
            check_text(prompt) if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n" for m in messages or ())
        )
        if messages and isinstance(prompt, Chat) and prompt.continued:
            messages, begun, text = messages[:-1], messages[-1]["content"], text.removesuffix("\n")
        variables = prompt.chat_template_kwargs if isinstance(prompt, Chat) else None
        encoded = Prompt(text, self.tokenize(text), messages, self.vocabulary, None, begun, variables or None)
        return check_fits(encoded, self.name, self.context)

    def tokenize(self, text: str) -> tuple[int, ...]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            fitting = [t for t in self.tokens if text.startswith(t, at) and self.tokens.index(t) != self.end_id]
            longest = max(fitting, key=len, default="")
            ids += [self.tokens.index(longest)] if longest else []
            at += len(longest) or 1
        return tuple(ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, **options: Any) -> str:
        return self.text(token_ids)

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        prefix = ask.prompt.token_ids + ask.response.token_ids
        writers = [self.writer(ask) for _ in range(ask.n)]
        u = [uniforms(ask.seed, ask.segment, ask.first + i, writers[0].most) for i in range(ask.n)]
        account = current_account()
        account.add(prefill_tokens=len(prefix))
        while unfinished := [i for i, writer in enumerate(writers) if writer.segment is None]:
            await asyncio.sleep(0)
            drew = 0
            for i in unfinished:
                writer = writers[i]
                logits, at = writer.shaped(self._next(prefix + tuple(writer.tokens))), len(writer.tokens)
                allowed = self.exclusions.masked(logits, prefix + tuple(writer.tokens), writer.position)
                p = distribution(allowed, ask.sampling, writer.position)
                if ask.boundary.reads_logits and at >= ask.boundary.minimum:
                    uncertainty = ask.boundary.uncertainty(logits)
                    if ask.boundary.ends_before(uncertainty):
                        writer.end(entropy=uncertainty)
                        continue
                writer.push(pick(p, u[i][at]))
                drew += 1
            account.add(decoded_tokens=drew, steps=1)
        yield [writer.segment for writer in writers if writer.segment is not None]

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        ids = prompt.token_ids + response.token_ids
        check(1 <= last <= len(ids), f"last must be between 1 and the {len(ids)} tokens of prompt and response, got {last}.")
        return (await self._last_logits(ids, last)).astype(np.float32)

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        ids = response.token_ids
        last = len(ids) if last is None else last
        if not last:
            return np.zeros(0)
        logits = await self._last_logits(prompt.token_ids + ids[:-1], last) / temperature
        return np.array([row[t] - np.logaddexp.reduce(row) for row, t in zip(logits, ids[-last:], strict=True)])

    async def _last_logits(self, ids: tuple[int, ...], last: int) -> NDArray[np.float64]:
        await asyncio.sleep(0)
        current_account().add(steps=1, prefill_tokens=last)
        return np.stack([self._next(ids[: len(ids) - i]) for i in reversed(range(last))])

"""Log-probabilities of the tokens of a prompt and a response, with the most likely alternatives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cards.engines.base import Engine
from cards.engines.detokenizer import Detokenizer
from cards.events import Prompt, Response
from cards.token_bytes import byte_reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_LOGPROB = -9999.0  # JSON has no minus infinity
MAX_LOGITS = 2**24  # read at a time, which are 64 MiB


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could stand at a position. For a part of a character, `text` is a replacement character."""

    text: str
    data: bytes
    logprob: float

    @property
    def key(self) -> str:
        """The text, or the bytes of a part of a character in OpenAI's notation."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token (None for the first one of a text), itself as an alternative, and the most likely ones."""

    logprob: float | None
    own: Alternative | None = None
    top: tuple[Alternative, ...] = ()


async def logprobs_of(engine: Engine, prompt: Prompt, response: Response, count: int, echo: bool) -> list[TokenLogprob]:
    """Return natural-log probabilities (temperature 1, whole vocabulary) of the response's tokens, with `count` alternatives.

    With `echo` they follow those of the prompt's tokens. Raises MismatchError without the capability `logprobs`, or `logits`
    for alternatives and prompts.
    """
    if not (count or echo):
        values = await engine.logprobs(prompt, response)
        return [TokenLogprob(_finite(float(value))) for value in values]
    ids = prompt.token_ids + response.token_ids
    found = [TokenLogprob(None)] if echo else []
    async for start, logits in logits_before(engine, prompt, response, 1 if echo else len(prompt.token_ids)):
        found += await asyncio.to_thread(_read, engine, ids, start, logits, count)
    return found


async def logits_before(
    engine: Engine, prompt: Prompt, response: Response, first: int
) -> AsyncIterator[tuple[int, NDArray[np.float32]]]:
    """Yield the logits [tokens, vocabulary] before the tokens of prompt + response from number `first` on, in parts.

    The number of the first token of each part comes with it.
    """
    ids = prompt.token_ids + response.token_ids
    step = max(1, MAX_LOGITS // (engine.vocab_size or 2**17))
    for start in range(first, len(ids), step):
        end = min(start + step, len(ids))
        before = max(0, end - 1 - len(prompt.token_ids))  # tokens of the response before the last token of this part
        asked = prompt if end > len(prompt.token_ids) else replace(prompt, token_ids=ids[: end - 1])
        yield start, await engine.logits(asked, Response(token_ids=response.token_ids[:before]), end - start)


def _read(engine: Engine, ids: Sequence[int], start: int, logits: NDArray[np.float32], count: int) -> list[TokenLogprob]:
    """Return the log-probabilities of the tokens from `start` on, given the logits [tokens, vocabulary] before each."""
    import numpy as np

    found = []
    for at, row in enumerate(logits, start):
        values = row.astype(np.float64)
        values -= np.logaddexp.reduce(values)
        logprob = _finite(float(values[ids[at]]))
        most = min(count, len(values))
        top = np.argpartition(-values, most - 1)[:most] if most else np.array([], np.intp)
        top = top[np.lexsort((top, -values[top]))]
        alternatives = [_alternative(engine, ids[:at], int(token), _finite(float(values[token]))) for token in top]
        own = _alternative(engine, ids[:at], ids[at], logprob) if count else None
        found.append(TokenLogprob(logprob, own, tuple(alternatives)))
    return found


def _finite(logprob: float) -> float:
    return max(MIN_LOGPROB, logprob)


def _alternative(engine: Engine, before: Sequence[int], token: int, logprob: float) -> Alternative:
    reader = byte_reader(engine.tokenizer)
    data = reader(token) if reader is not None else None
    if data is None:
        data = Detokenizer(engine.tokenizer, before).push([token]).encode()
    return Alternative(data.decode(errors="replace"), data, logprob)

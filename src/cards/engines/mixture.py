"""Mixtures: an engine whose next-token logits combine those of several LMs, or of one LM after several prompts."""

from __future__ import annotations

import asyncio
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cards.engines.base import Ask, Engine
from cards.engines.derived import DerivedEngine, after
from cards.engines.shaper import Shaper
from cards.engines.text import check_fits, room_left
from cards.engines.writer import Writer
from cards.errors import MismatchError, check
from cards.events import Message, Prompt, Response, Segment
from cards.sampling import distribution, pick, uniforms, valid_logits
from cards.usage import in_role

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Source:
    """An LM that a mixture reads. `prompt` returns the prompt that it gets instead of the one of the request."""

    engine: Engine
    prompt: Callable[[Prompt], Prompt] | None = None


class Mixture(ABC):
    """The rule of a mixture: what it reads besides the LM, and how it combines the logits."""

    __slots__ = ()

    @abstractmethod
    def sources(self, engine: Engine) -> Sequence[Source]:
        """Return what the mixture reads besides the LM `engine`."""

    @abstractmethod
    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        """Return the logits [vocabulary] of the mixture from those of the LM and of each source.

        `position` is the number of the token in the response, from 0. Log-probabilities are logits up to a constant, which
        changes no distribution. A token with -inf is excluded.
        """

    def mixes(self, position: int) -> bool:
        """Return whether the token at this position is mixed. If not, it follows the LM, and the sources are not read."""
        return True

    def over(self, engine: Engine) -> Engine:
        """Return the engine that samples from the mixture of `engine` and the sources."""
        return MixtureEngine(engine, self)


class MixtureEngine(DerivedEngine):
    """An engine that samples from a mixture of `engine` and the sources of `rule`.

    Each source is read with its own cache, and the candidates of all asks share its batches. Tokens that a source cannot read
    are excluded. Logits, entropies and log-probabilities are those of the mixture, so every method runs on it as on an LM.
    In the usage, LMs other than `engine` count as drafts. Raises MismatchError if an LM does not share the tokenizer or does
    not provide logits.
    """

    def __init__(self, engine: Engine, rule: Mixture) -> None:
        super().__init__(engine)
        self.rule, self.others = rule, tuple(rule.sources(engine))
        engines = [engine, *(source.engine for source in self.others)]
        for one in engines:
            if "logits" not in one.has:
                raise MismatchError(
                    f"Engine {one.name!r} does not provide logits (of the whole vocabulary), which a mixture needs. Load the "
                    "model in this process."
                )
            if one.vocabulary != engine.vocabulary:
                raise MismatchError(f"{one.name!r} and {engine.name!r}, which are mixed, do not share a tokenizer.")
        self.parts = list(dict.fromkeys(engines))
        self._excluded = engine.exclusions  # the mixture itself excludes nothing more
        self.context = min(one.context for one in engines)
        self.rows = max(1, min(one.rows // engines.count(one) for one in engines))
        self.vocab_size = min((one.vocab_size for one in engines if one.vocab_size is not None), default=None)
        self._prompts = lru_cache(4 * self.rows)(self._other_prompts)

    async def _candidate(self, ask: Ask, number: int, wanted: asyncio.Event) -> Segment:
        writer, boundary = self.writer(ask), ask.boundary
        u = uniforms(ask.seed, ask.segment, number, writer.most)
        while writer.segment is None:
            await wanted.wait()
            at = len(writer.tokens)
            [logits] = await self.shaped_logits(ask.prompt, after(ask.response, writer.tokens), 1, writer.shaper)
            if boundary.reads_logits and at >= boundary.minimum:
                uncertainty = boundary.uncertainty(logits)
                if boundary.ends_before(uncertainty):
                    writer.end(entropy=uncertainty)
                    break
            writer.choose(pick(distribution(logits, ask.sampling, writer.position), float(u[at])))
        assert writer.segment is not None
        return writer.segment

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        """Return the logits of the mixture after each of the last `last` tokens. All must be at or after the prompt's last.

        Tokens that `engine` excludes from its proposals have probability 0 before and after the logits are combined.
        """
        return await self.shaped_logits(prompt, response, last, None)

    async def shaped_logits(
        self, prompt: Prompt, response: Response, last: int, shaper: Shaper | None
    ) -> NDArray[np.floating[Any]]:
        """Return the logits of the mixture, shaped. The grammar excludes tokens before and after they are combined."""
        import numpy as np

        count = len(response.token_ids)
        check(
            1 <= last <= count + 1,
            f"last must be between 1 and {count + 1} for a mixture, which has logits only after the prompt, got {last}.",
        )
        positions = range(count + 1 - last, count + 1)
        reads = [self.engine.logits(prompt, response, last)]
        if any(map(self.rule.mixes, positions)):
            for source, own in zip(self.others, self._prompts_for(prompt), strict=True):
                if source.engine is self.engine:
                    reads.append(self.engine.logits(own, response, last))
                else:
                    reads.append(in_role("draft", source.engine.logits, own, response, last))
        found = await asyncio.gather(*reads)
        readable = min((*(rows.shape[1] for rows in found), *([] if self.vocab_size is None else [self.vocab_size])))
        mixed, text, start = [], prompt.token_ids + response.token_ids, len(prompt.token_ids)
        for position, rows in zip(positions, zip(*found, strict=True), strict=True):
            raw, *others = (valid_logits(row[:readable], position) for row in rows)
            logits = self._excluded.masked(raw, text[: start + position], position)
            if shaper is not None:
                logits = logits.copy()
                shaper.mask(logits, response.token_ids[:position])
            if self.rule.mixes(position):
                logits = self.rule.combine(position, logits, *others)
                logits = self._excluded.masked(logits, text[: start + position], position)
            logits = logits.astype(np.float32)
            mixed.append(logits if shaper is None else shaper.shaped(logits, response.token_ids[:position]))
        return np.stack(mixed)

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        import numpy as np

        ids = response.token_ids
        last = len(ids) if last is None else last
        check(0 <= last <= len(ids), f"last must be between 0 and {len(ids)}, the length of the response, got {last}.")
        if not last:
            return np.zeros(0)
        rows = (await self.logits(prompt, Response(token_ids=ids[:-1]), last)).astype(np.float64) / temperature
        return np.array([row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, ids[-last:], strict=True)])

    def encode(self, prompt: str | Sequence[Message]) -> Prompt:
        encoded = self.engine.encode(prompt)
        for source, own in zip(self.others, self._prompts_for(encoded), strict=True):
            check_fits(own, source.engine.name, source.engine.context, source.engine.vocab_size)
        return encoded

    def writer(self, ask: Ask) -> Writer:
        """Return a writer limited to what fits into the contexts of all LMs. Raises PromptTooLongError if nothing does."""
        used = len(ask.response.token_ids)
        prompts = [(self.engine, ask.prompt), *zip((s.engine for s in self.others), self._prompts_for(ask.prompt), strict=True)]
        room = min(room_left(engine.name, engine.context, len(prompt.token_ids) + used) for engine, prompt in prompts)
        context = len(ask.prompt.token_ids) + used + room
        return Writer(ask, self.tokenizer, self.end_ids, context, self.shaper(ask.shaping, ask.prompt))

    def _prompts_for(self, prompt: Prompt) -> tuple[Prompt, ...]:
        """Return the prompt that each source gets."""
        if all(source.prompt is None for source in self.others):
            return (prompt,) * len(self.others)
        return self._prompts(Key(prompt))

    def _other_prompts(self, key: Key) -> tuple[Prompt, ...]:
        return tuple(key.prompt if source.prompt is None else source.prompt(key.prompt) for source in self.others)


class Key:
    """A prompt as the key of a cache. Prompts with messages have no hash."""

    __slots__ = ("prompt",)

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def __hash__(self) -> int:
        return hash((self.prompt.text, self.prompt.token_ids))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.prompt == other.prompt


def scaled(weight: float, logits: Floats) -> Floats:
    """Return weight * logits [vocabulary], for sums with the logits of other models.

    A token that the model excludes (-inf) stays excluded under a positive weight. Otherwise it counts as a token of the
    smallest positive probability, because 0 * -inf is NaN and +inf is no score.
    """
    import numpy as np

    if weight <= 0:
        logits = np.maximum(logits, logits.max() + math.log(sys.float_info.min))
    return weight * logits


def plausible(logits: Floats, scores: Floats, share: float) -> Floats:
    """Return the scores [vocabulary] of the tokens with at least `share` of the highest probability by `logits`, else -inf."""
    import numpy as np

    return np.where(np.exp(logits - logits.max()) >= share, scores, -np.inf)

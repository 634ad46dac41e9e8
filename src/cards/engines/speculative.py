"""Speculative decoding: a draft model proposes tokens, and one step of the target model tests all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cards.engines.base import Ask, Engine
from cards.engines.derived import DerivedEngine, after
from cards.engines.exclusions import Exclusions
from cards.engines.writer import Writer
from cards.errors import MismatchError, check
from cards.events import Prompt, Response, Segment
from cards.sampling import DRAFT_TEST, RESIDUAL, TOKENS, Sampling, distribution, pick, uniforms
from cards.usage import booked_as, current_account

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def residual(p: Floats, q: Floats) -> Floats:
    """Return max(0, p - q). Tokens of q that are accepted with probability min(1, p / q), and else replaced so, follow p."""
    return (p - q).clip(0)


@dataclass(frozen=True)
class Shift:
    """A test of drafted tokens that gives them another law than the target's.

    `test` maps the next-token probabilities (p, q, s) of the target, the draft and `reference` to (accepted, proposed,
    weights): a drafted token passes with probability min(1, accepted / proposed), and `weights` is the law of its replacement,
    unnormalised. `sampling` applies to the reference.
    """

    reference: Engine
    sampling: Sampling
    test: Callable[[Floats, Floats, Floats], tuple[Floats, Floats, Floats]]

    async def read(self, writer: Writer, drafted: Sequence[int], exclusions: Exclusions) -> list[Floats]:
        """Return the reference's probabilities at each drafted token after the writer's, from one step."""
        prompt, before = writer.ask.prompt, after(writer.ask.response, writer.tokens)
        with booked_as("draft"):
            rows = await self.reference.shaped_logits(prompt, after(before, drafted[:-1]), len(drafted), writer.shaper)
        text, start = (*prompt.token_ids, *before.token_ids), writer.position
        return [
            distribution(exclusions.masked(row, (*text, *drafted[:i]), start + i), self.sampling, start + i)
            for i, row in enumerate(rows)
        ]


class SpeculativeEngine(DerivedEngine):
    """An engine that samples from `target` in fewer steps, with tokens drafted by `draft`.

    This is exact speculative sampling (arXiv 2211.17192, 2302.01318). q and p are the next-token probabilities of draft and
    target under the ask's sampling. A round draws up to `gamma` tokens from q and reads them with the target in one step:

        accept a drafted token with probability min(1, p / q)
        after the first rejection, draw a token from max(0, p - q), normalised, and end the round
        if all are accepted, draw one more token from p

    A segment ends at the same token as without a draft: boundaries read the target's logits, and later drafted tokens are
    dropped. Random numbers depend on the position of a token in its candidate, as in plain decoding. So a draft that equals the
    target produces the same text as plain decoding.

    A `shift` replaces the test. All tokens are then drafted, because a further token from p would not follow the shifted law.
    Raises MismatchError if the engines do not share a tokenizer or do not provide logits, and SettingError.
    """

    def __init__(self, target: Engine, draft: Engine, gamma: int = 4, *, shift: Shift | None = None) -> None:
        check_gamma(gamma)
        for engine in (target, draft):
            if "logits" not in engine.has:
                raise MismatchError(f"Engine {engine.name!r} does not provide logits, which speculative decoding needs.")
        if target.vocabulary != draft.vocabulary:
            raise MismatchError(f"Draft {draft.name!r} and target {target.name!r} do not share a tokenizer.")
        super().__init__(target)
        self.parts = (target, draft)
        self.draft, self.gamma, self.shift = draft, gamma, shift
        readers = (target.vocab_size, shift.reference.vocab_size if shift else None)
        self.readable = min((size for size in readers if size is not None), default=None)
        self.exclusions = target.exclusions

    async def _candidate(self, ask: Ask, number: int, wanted: asyncio.Event) -> Segment:
        writer, sampling, boundary, shift = self.writer(ask), ask.sampling, ask.boundary, self.shift
        draws, tests, replacements = (
            uniforms(ask.seed, ask.segment, number, writer.most, stream) for stream in (TOKENS, DRAFT_TEST, RESIDUAL)
        )
        while writer.segment is None:
            await wanted.wait()
            done = len(writer.tokens)
            before = after(ask.response, writer.tokens)
            drafted, q = await self._drafted(writer, writer.most - done - (shift is None), draws[done:])
            free = shift is None and not writer.ends_with(drafted)  # no token follows the end of a response
            read = drafted if free else drafted[:-1]
            logits = await self.engine.shaped_logits(ask.prompt, after(before, read), len(read) + 1, writer.shaper)
            s = await shift.read(writer, drafted, self.exclusions) if shift else []
            for i, row in enumerate(logits):
                at = len(writer.tokens)
                text = (*ask.prompt.token_ids, *ask.response.token_ids, *writer.tokens)
                p = distribution(self.exclusions.masked(row, text, writer.position), sampling, writer.position)
                if boundary.reads_logits and at >= boundary.minimum:
                    uncertainty = boundary.uncertainty(row)
                    if boundary.ends_before(uncertainty):
                        writer.end(entropy=uncertainty)
                        break
                if i == len(drafted):
                    passed, token = False, pick(p, draws[at])
                else:
                    token = drafted[i]
                    [p, *others] = padded(p, q[i], *s[i : i + 1])
                    accepted, proposed, weights = shift.test(p, *others) if shift else (p, *others, residual(p, *others))
                    passed = bool(tests[at] * proposed[token] < accepted[token])
                    if not passed:
                        token = pick(weights if weights.any() else p, replacements[at])  # they round to 0 if p equals q
                writer.choose(token)
                if writer.segment is not None or not passed:
                    break
        return writer.segment

    async def _drafted(self, writer: Writer, most: int, u: Floats) -> tuple[list[int], list[Floats]]:
        """Draft up to gamma tokens that the readers can read. Return them and the distributions that they are drawn from."""
        tokens: list[int] = []
        q: list[Floats] = []
        ask = writer.ask
        before = after(ask.response, writer.tokens)
        text = (*ask.prompt.token_ids, *before.token_ids)
        room = self.draft.context - len(text)
        if self.shift is None and self.draft.vocab_size is not None and max(text, default=0) >= self.draft.vocab_size:
            room = 0  # the target drew an id that pads its vocabulary beyond the draft's; it goes on alone
        with booked_as("draft"):
            while len(q) < min(self.gamma, most, room) and not writer.ends_with(tokens):
                [logits] = await self.draft.shaped_logits(ask.prompt, after(before, tokens), 1, writer.shaper)
                at = len(before.token_ids) + len(tokens)
                allowed = self.exclusions.masked(logits[: self.readable], (*text, *tokens), at)
                if self.shift is None and allowed.max() == -math.inf:
                    break  # the draft gives no allowed token a probability; the target goes on alone
                q.append(distribution(allowed, ask.sampling, at))
                tokens.append(pick(q[-1], u[len(tokens)]))
            current_account().add(decoded_tokens=len(tokens))
        return tokens, q

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        return await self.engine.logits(prompt, response, last)

    async def logprobs(
        self, prompt: Prompt, response: Response, last: int | None = None, temperature: float = 1.0
    ) -> NDArray[np.float64]:
        return await self.engine.logprobs(prompt, response, last, temperature)


def padded(*laws: Floats) -> list[Floats]:
    """Return the laws with zeros up to the longest: models that share a tokenizer may pad its vocabulary differently."""
    import numpy as np

    longest = max(map(len, laws))
    return [np.pad(law, (0, longest - len(law))) for law in laws]


def check_gamma(gamma: int) -> None:
    check(gamma >= 1, f"gamma must be at least 1 token, got {gamma}.")

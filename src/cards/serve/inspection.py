"""Measurements of a complete response for clients that look inside it. They are not part of its usage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cards.boundaries import Entropy, Whole
from cards.decoder import Decoder
from cards.events import Prompt, Response
from cards.methods.segments.driver import SegmentMethod
from cards.serve.logprobs import logits_before


@dataclass(frozen=True, slots=True)
class Inspection:
    """The entropy before each token of a response, the rule by which entropy ends segments, and the reward.

    `entropies` is None if the engine has no logits, and `rule` if the method does not use one. If the rule has another
    measure of uncertainty, `entropies` has that one.
    """

    entropies: Sequence[float] | None
    rule: Entropy | None
    reward: float | None


async def inspect(decoder: Decoder, prompt: Prompt, response: Response, reward: float | None) -> Inspection:
    """Read a response once more with the LM, and score it if it has no reward."""
    if reward is None and decoder.reward is not None:
        [reward] = await decoder.reward.score(prompt, [response])
    rule, entropies = entropy_rule(decoder), None
    if "logits" in decoder.engine.has:
        measured, entropies = rule or Entropy(), list[float]()
        async for _, logits in logits_before(decoder.engine, prompt, response, len(prompt.token_ids)):
            entropies += await asyncio.to_thread(lambda rows: [measured.uncertainty(row) for row in rows], logits)
    return Inspection(entropies, rule, reward)


def entropy_rule(decoder: Decoder) -> Entropy | None:
    """Return the rule by which the innermost method ends segments, if it uses entropy."""
    method, suggested = decoder.method.nest[-1], decoder.engine.entropy_threshold
    if isinstance(method, SegmentMethod):
        boundary = method.segment_boundary(suggested)
    else:
        boundary = getattr(method, "boundary", Whole()) or Entropy(threshold=suggested)  # None is the rule of CARDS
    return boundary if isinstance(boundary, Entropy) else None

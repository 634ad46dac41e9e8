"""The texts of a diagnosis: plain responses, and their segment ends by boundary rule."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from cards.boundaries import Entropy, Punctuation
from cards.engines.base import Ask, Engine
from cards.events import Prompt, Response
from cards.methods.base import collect_segments
from cards.study.calibrate.lengths import segment_lengths
from cards.study.calibrate.samples import entropies

RULES = ("entropy", "punctuation", "fixed")


@dataclass(frozen=True, slots=True)
class SegmentedResponse:
    """A complete response, and the lengths (tokens) of its prefixes at the segment ends, by boundary rule."""

    response: Response
    ends: dict[str, list[int]]


async def plain_responses(engine: Engine, ask: Ask, threshold: float, fixed: int) -> list[SegmentedResponse]:
    """Draw plain responses. `threshold` is tau_u, and `fixed` is the number of tokens per segment of the rule fixed."""
    responses = [Response() + segment for segment in await collect_segments(engine, ask)]
    return [SegmentedResponse(one, await _segment_ends(engine, ask.prompt, one, threshold, fixed)) for one in responses]


async def _segment_ends(
    engine: Engine, prompt: Prompt, response: Response, threshold: float, fixed: int
) -> dict[str, list[int]]:
    """Return the segment ends by rule. The entropy rule needs an engine with logits and is omitted without."""
    tokens = len(response.token_ids)
    ends = {"fixed": list(range(fixed, tokens, fixed)), "punctuation": []}
    rule, start = Punctuation(), 0
    for length in range(1, tokens):
        text = prefix(engine, prompt, response, length).text
        if rule.ends_after(text[start:]):
            ends["punctuation"].append(length)
            start = len(text)
    if "logits" in engine.has:
        boundary, values = Entropy(), await entropies(engine, prompt, response)
        lengths = segment_lengths(tokens, values, threshold, boundary.minimum, boundary.maximum or tokens)
        ends["entropy"] = list(accumulate(lengths))[:-1]
    return ends


def prefix(engine: Engine, prompt: Prompt, response: Response, length: int) -> Response:
    """Return the first `length` tokens of a response."""
    return engine.extended(prompt, Response(), response.token_ids[:length])

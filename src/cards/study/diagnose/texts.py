"""The texts of a diagnosis: prefixes of responses at segment ends, by boundary rule."""

from __future__ import annotations

from itertools import accumulate

from cards.boundaries import Entropy, Punctuation
from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.study.calibrate.lengths import segment_lengths
from cards.study.calibrate.samples import entropies

RULES = ("entropy", "punctuation", "fixed")


async def segment_ends(
    engine: Engine, prompt: Prompt, response: Response, threshold: float, fixed: int
) -> dict[str, list[int]]:
    """Return the lengths (tokens) of the prefixes of a response that end at its segment ends, by boundary rule.

    `threshold` is tau_u, and `fixed` is the number of tokens per segment of the rule fixed. The entropy rule needs an engine
    with logits and is omitted without.
    """
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

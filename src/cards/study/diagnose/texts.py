"""The texts of a diagnosis: answers of the LM, and where each boundary rule cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cards.boundaries import Entropy, Punctuation
from cards.engines.base import Ask, Engine
from cards.events import Prompt, Response
from cards.sampling import Sampling
from cards.study.calibrate.lengths import cut

RULES = ("entropy", "punctuation", "fixed")


@dataclass(frozen=True, slots=True)
class CutResponse:
    """A whole answer of the LM and the lengths (tokens) of its prefixes at the boundaries of each rule."""

    response: Response
    cuts: dict[str, list[int]]


async def answers_to(
    engine: Engine,
    prompt: Prompt,
    number: int,
    *,
    count: int,
    max_tokens: int,
    sampling: Sampling,
    threshold: float,
    fixed: int,
) -> list[CutResponse]:
    """Plain answers; `threshold` is tau_u and `fixed` the tokens of a segment of the rule of that name."""
    ask = Ask(prompt, Response(), max_tokens, sampling=sampling, seed=number, n=count)
    async with aclosing(engine.propose(ask)) as batches:
        responses = [Response() + segment async for batch in batches for segment in batch]
    return [CutResponse(response, await _cuts(engine, prompt, response, threshold, fixed)) for response in responses]


async def _cuts(engine: Engine, prompt: Prompt, response: Response, threshold: float, fixed: int) -> dict[str, list[int]]:
    """By rule; the entropy rule only where the engine gives logits."""
    tokens = len(response.token_ids)
    found = {"fixed": list(range(fixed, tokens, fixed)), "punctuation": []}
    rule, begun = Punctuation(), 0
    for length in range(1, tokens):
        text = prefix(engine, prompt, response, length).text
        if rule.ends_after(text[begun:]):
            found["punctuation"].append(length)
            begun = len(text)
    if "logits" in engine.has:
        boundary = Entropy(threshold=threshold)
        entropies: list[float] = []
        if tokens > 1:
            before = Response(token_ids=response.token_ids[:-1])  # the logits after each token but the last
            entropies = [boundary.uncertainty(line) for line in await engine.logits(prompt, before, tokens - 1)]
        lengths = cut(tokens, entropies, threshold, boundary.minimum, boundary.maximum or tokens)
        found["entropy"] = _ends(lengths)[:-1]
    return found


def prefix(engine: Engine, prompt: Prompt, response: Response, length: int) -> Response:
    """The first tokens of an answer."""
    return engine.extended(prompt, Response(), response.token_ids[:length])


def _ends(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[: place + 1]) for place in range(len(lengths))]

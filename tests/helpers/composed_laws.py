"""Laws of combinations on the letter world, enumerated from the formulas without code of the package's methods."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from contextlib import aclosing

from cards import Engine, Method, Request, Result
from cards.events import Fold
from cards.testing.laws import Model, normalised
from cards.usage import Usage, track_usage
from helpers.letter_world import END, REWARD, Ids, Law, passing, reading, segments, threshold, value

PROMPT = (0,)
BLOCK, MOST = 2, 4  # tokens of a segment and of a response


def draws(method: Method, engine: Engine, count: int, max_tokens: int = MOST) -> list[Result]:
    """Return responses to PROMPT, with one seed each."""

    async def one(seed: int) -> Result:
        usage = Usage()
        fold = Fold(usage, seed, method.name)
        with track_usage(usage):
            async with aclosing(method.stream(Request(engine.encode("a"), max_tokens, seed), engine, REWARD)) as events:
                async for event in events:
                    fold.add(event)
        return fold.result()

    async def all_of_them() -> list[Result]:
        return [await one(seed) for seed in range(count)]

    return asyncio.run(all_of_them())


def counts(results: list[Result]) -> Counter[Ids]:
    assert not any(segment.fallback for result in results for segment in result.segments)
    return Counter(result.token_ids for result in results)


def cards_law(model: Model, beta_passing: bool = True, most: int = MOST) -> Law:
    """The law of CARDS with segments of BLOCK tokens and without fallbacks, over the proposal `model`."""
    law: Law = {}

    def grow(ids: Ids, p: float) -> None:
        if ids and (ids[-1] == END or len(ids) == most):
            law[ids] = p
            return
        found = segments(min(BLOCK, most - len(ids)), model, after=PROMPT + ids)
        weights = {s: q * (passing(ids + s, threshold(len(ids + s), most)) if beta_passing else 1.0) for s, q in found.items()}
        for segment, share in normalised(weights).items():
            grow(ids + segment, p * share)

    grow((), 1.0)
    return law


def best_of(law: Law, n: int) -> Law:
    """The law of the response of highest reward among n responses; all rewards differ."""
    rewards = {ids: value(reading(ids)) for ids in law}
    below = {ids: sum(p for other, p in law.items() if rewards[other] < rewards[ids]) for ids in law}
    return {ids: (below[ids] + p) ** n - below[ids] ** n for ids, p in law.items()}


def soft_best_of_two(law: Law, beta: float) -> Law:
    """The law of one of two responses, chosen with probability proportional to exp(reward / beta)."""
    found = dict.fromkeys(law, 0.0)
    for (a, p), (b, q) in itertools.product(law.items(), law.items()):
        gap = (value(reading(b)) - value(reading(a))) / beta
        share = 1 / (1 + math.exp(min(gap, 500.0)))
        found[a] += p * q * share
        found[b] += p * q * (1 - share)
    return found


def proxy_tuned(model: Model, tuned: Model, untuned: Model, weight: float) -> Model:
    """Next-token probabilities proportional to p (p_tuned / p_untuned)^weight."""

    def mixed(ids: Ids) -> list[float]:
        parts = zip(model(ids), tuned(ids), untuned(ids), strict=True)
        weights = [p * (t / u) ** weight for p, t, u in parts]
        return [w / sum(weights) for w in weights]

    return mixed

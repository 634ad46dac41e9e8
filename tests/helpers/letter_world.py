"""A small world whose laws can be enumerated: four letters, random conditional distributions, and a reward for every text."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import aclosing
from typing import Any

from cards import CARDS, Boundary, Entropy, Method, Request, Result
from cards.events import Fold
from cards.testing import MockEngine, MockReward, law_of, random_model, random_value
from cards.testing.laws import Ids as Ids
from cards.testing.laws import Law as Law
from cards.testing.laws import Model
from cards.testing.mocks import LETTERS as LETTERS
from cards.usage import Usage, track_usage

END = LETTERS.index("d")  # the token that ends a response
BETA, TARGET = 0.5, 1.0
DRAWS = 3000
BY_ENTROPY = Entropy(1, 3, 1.1)
REWARD = MockReward(target=None)
next_token = random_model()
value = random_value


def engine(model: Model = next_token) -> MockEngine:
    return MockEngine(model, LETTERS, end=LETTERS[END])


def reading(ids: Ids) -> str:
    """Return the text of tokens."""
    return "".join(LETTERS[t] for t in ids if t != END)


def segments(max_tokens: int, model: Model = next_token, **options: Any) -> Law:
    """Return every segment of at most `max_tokens` tokens with its probability; options as for `law_of`."""
    return law_of(model, max_tokens, end=END, **options)


def entropy(ids: Ids) -> float:
    return float(-sum(p * math.log(p) for p in next_token(ids) if p > 0))


async def decode(method: Method, max_tokens: int, seed: int, segments: int | None) -> Result:
    """Decode one request like Decoder, without its task and queue, up to `segments` segments."""
    source, usage = engine(), Usage()
    fold = Fold(usage, seed, method.name)
    with track_usage(usage):
        async with aclosing(method.stream(Request(source.encode("?"), max_tokens, seed), source, REWARD)) as events:
            async for event in events:
                fold.add(event)
                if len(fold.segments) == segments:
                    break
    return fold.result()


def results(method: Method, max_tokens: int, draws: int = DRAWS, segments: int | None = None) -> list[Result]:
    async def all_of_them() -> list[Result]:
        return [await decode(method, max_tokens, seed, segments) for seed in range(draws)]

    return asyncio.run(all_of_them())


def threshold(tokens: int, max_tokens: int, alpha: float = 0.5) -> float:
    """Return tau(t) for a prompt with reward 0."""
    return min(TARGET, alpha * TARGET + tokens * (1 - alpha) * TARGET / max_tokens)


def passing(ids: Ids, tau: float) -> float:
    return math.exp(min(0.0, (value(reading(ids)) - tau) / BETA))


def cards(boundary: Boundary, **options: Any) -> CARDS:
    settings: dict[str, Any] = {"target": TARGET, "beta": BETA, "temperature": 1.0, "boundary": boundary, "width": 1}
    return CARDS(**(settings | options))


def at_uncertain(segment: Ids) -> bool:
    return len(segment) == 3 or entropy(segment) >= 1.1


def first_segments(found: list[Result]) -> Counter[Ids]:
    return Counter(r.segments[0].token_ids for r in found if not r.segments[0].fallback)

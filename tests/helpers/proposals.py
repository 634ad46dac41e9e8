"""Proposals of an engine: all of their candidates, and that these depend on nothing but the ask."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

from cards.engines.base import Ask, Engine
from cards.events import Segment


async def candidates(source: Engine, ask: Ask) -> list[Segment]:
    async with aclosing(source.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


async def assert_cache_and_company_change_nothing(source: Engine, ask: Ask) -> None:
    """Compare the candidates drawn together, one at a time without a cache, and beside those of another seed."""
    together = await candidates(source, ask)
    source.forget()
    alone = [s for i in range(ask.n) for s in await candidates(source, replace(ask, first=i, n=1))]
    assert together == alone
    again, different = await asyncio.gather(candidates(source, ask), candidates(source, replace(ask, seed=ask.seed + 1)))
    assert again == together
    assert different != together

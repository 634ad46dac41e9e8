"""Best-of-N sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.events import Segment
from cards.methods.base import argmax
from cards.methods.responses.driver import ResponseMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN(ResponseMethod):
    """Return argmax of r(x, y_i) over y_1 .. y_n ~ q (the first one in case of ties)."""

    name: ClassVar[str] = "best-of-n"
    summary: ClassVar[str] = "Return the response with the highest reward out of n."

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        return argmax(candidates)

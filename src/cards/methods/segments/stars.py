"""STARS: segment-level rejection sampling with segments of one length (Quamar et al., 2025, arXiv 2511.03827)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.boundaries import Boundary, FixedLength
from cards.methods.segments.driver import Rising
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class STARS(Rising):
    """CARDS with segments of K tokens instead of segments cut where the LM is unsure.

        accept   if u < min(1, exp((r(x, y + s) - tau(t)) / beta)),   |s| = K,   tau(t) as in CARDS

    `block` is K (15 or 30). Threshold, test and fallback are those of CARDS, see there, also for target, alpha and temperature.

    Segments of one length are there so that a batch can run in lock step; here no request waits for another's
    segment, so the length is a choice of quality, not of speed.
    """

    name: ClassVar[str] = "stars"
    summary: ClassVar[str] = "CARDS with segments of one fixed length."

    block: int = setting(15, help="Number of tokens of a segment.", at_least=1, typical=(1, 64))

    def segments(self, known: float) -> Boundary:
        return FixedLength(maximum=self.block)

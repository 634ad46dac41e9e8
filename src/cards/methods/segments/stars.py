"""STARS: segment-level rejection sampling with segments of a fixed length (Quamar et al., 2025, arXiv 2511.03827)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.boundaries import Boundary, FixedLength
from cards.methods.segments.driver import SegmentMethod
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class STARS(SegmentMethod):
    """CARDS with segments of K tokens.

        accept   if u < min(1, exp((r(x, y + s) - tau(t)) / beta)),   |s| = K,   tau(t) as in CARDS

    `block` is K (15 or 30 in the paper). Threshold, test, fallback and all other settings are those of CARDS.

    The paper fixes the length so that a batch can run in lock step. Here no request waits for the segments of another, so the
    length affects quality, not speed.
    """

    name: ClassVar[str] = "stars"
    summary: ClassVar[str] = "Run CARDS with segments of a fixed length."

    block: int = setting(15, help="Number of tokens per segment.", at_least=1, typical=(1, 64))

    def segment_boundary(self, suggested_threshold: float) -> Boundary:
        return FixedLength(maximum=self.block)

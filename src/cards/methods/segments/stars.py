"""STARS: segment-level rejection sampling with segments of one length (Quamar et al., 2025, arXiv 2511.03827)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar

from cards.acceptance import Acceptance
from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event
from cards.methods.base import Method, Request, Width, required
from cards.methods.segments.cards import CARDS
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class STARS(Method):
    """CARDS with segments of K tokens instead of segments cut where the LM is unsure.

        accept   if u < min(1, exp((r(x, y + s) - tau(t)) / beta)),   |s| = K,   tau(t) as in CARDS

    `block` is K (15 or 30). Threshold, test and fallback are those of CARDS, see there, also for target, alpha and temperature.

    Segments of one length are there so that a batch can run in lock step; here no request waits for another's
    segment, so the length is a choice of quality, not of speed.
    """

    name: ClassVar[str] = "stars"

    target: float | None = None
    beta: float = 0.7
    alpha: float = 0.5
    block: int = 15
    acceptance: Acceptance = "soft"
    max_rejections: int = 20
    temperature: float | None = None
    top_k: int | None = 40
    top_p: float = 1.0
    width: Width = "auto"

    def __post_init__(self) -> None:
        check(self.block >= 1, f"block must be at least 1 token, not {self.block}.")
        self.cards  # noqa: B018  (checks the others)

    @property
    def cards(self) -> CARDS:
        return CARDS(
            target=self.target,
            beta=self.beta,
            alpha=self.alpha,
            acceptance=self.acceptance,
            boundary=FixedLength(maximum=self.block),
            max_rejections=self.max_rejections,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            width=self.width,
        )

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        return self.cards.stream(request, engine, required(reward, self))

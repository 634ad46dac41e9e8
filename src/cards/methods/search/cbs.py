"""Chunk-level beam search (weak-to-strong search, Zhou et al., NeurIPS 2024, arXiv 2405.19262)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event
from cards.methods.base import Request, Sampled, required
from cards.methods.search.driver import Search, top
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class CBS(Sampled):
    """Continue each of W beams by K chunks of L tokens, keep the W of highest score, until all kept are finished.

        beams* = top W of V(x, y + z),   V(x, y) = log pi_tuned(y | x) - log pi_untuned(y | x)

    `beams` is W, `children` K, `block` L; the paper uses 4, 4, 10, and 2, 2, 30 for chat. V is the reward of the decoder: an
    implicit reward gives the paper's, from two small models, any other one its own. The answer is the best beam.

    Differs from the published code: a finished beam is kept once and not copied K times, so it takes no places from others.
    """

    name: ClassVar[str] = "cbs"

    beams: int = 4
    children: int = 4
    block: int = 10
    temperature: float = 0.7
    top_k: int | None = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.beams >= 1, f"beams must be at least 1, not {self.beams}.")
        check(self.children >= 1, f"children must be at least 1, not {self.children}.")
        check(self.block >= 1, f"block must be at least 1 token, not {self.block}.")
        self.sampling  # noqa: B018  (checks its settings)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        chunk = FixedLength(maximum=self.block)
        plan = chain([(chunk, self.beams * self.children)], repeat((chunk, self.children)))
        search = Search(plan, lambda scores: top(scores, self.beams), self.sampling)
        return search.stream(request, engine, required(reward, self))

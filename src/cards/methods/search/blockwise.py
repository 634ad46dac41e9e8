"""Blockwise best-of-K (controlled decoding, Mudgal et al., ICML 2024, arXiv 2310.17022)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event
from cards.methods.base import Request, Sampled, required
from cards.methods.search.driver import Search, top
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class Blockwise(Sampled):
    """Draw K blocks of M tokens, keep the one with the highest value, go on from it until the answer ends.

        z* = argmax over z_1 .. z_K of V(x, y + z_i),   z_i ~ q(. | x, y)

    `candidates` is K (4 to 32 in the paper), `block` M (up to 32). The value V is the reward of the incomplete answer;
    the paper trains a prefix scorer for it, which fits here as any other reward does.
    """

    name: ClassVar[str] = "blockwise"

    candidates: int = 8
    block: int = 16
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.candidates >= 1, f"candidates must be at least 1, not {self.candidates}.")
        check(self.block >= 1, f"block must be at least 1 token, not {self.block}.")
        self.sampling  # noqa: B018  (checks its settings)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        plan = repeat((FixedLength(maximum=self.block), self.candidates))
        search = Search(plan, lambda scores: top(scores, 1), self.sampling)
        return search.stream(request, engine, required(reward, self))

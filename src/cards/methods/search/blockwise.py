"""Blockwise best-of-K (controlled decoding, Mudgal et al., ICML 2024, arXiv 2310.17022)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockwise(SearchMethod):
    """Sample K candidate segments of M tokens, keep the one with the highest value, and repeat until the response ends.

        z* = argmax of V(x, y + z_i) over z_1 .. z_K ~ q(. | x, y),   |z_i| = M

    `candidates` is K (4 to 32 in the paper), `block` is M (up to 32). The value V is the reward of the incomplete response.
    The paper trains a prefix scorer for it, which can be used here like any other reward.
    """

    name: ClassVar[str] = "blockwise"
    summary: ClassVar[str] = "Sample K candidates for each segment of M tokens and keep the best."
    siblings: ClassVar[bool] = True

    candidates: int = setting(8, help="Number of candidates per segment.", at_least=1, typical=(1, 32), client_at_most=64)
    block: int = setting(16, help="Number of tokens per segment.", at_least=1, typical=(1, 64))

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        plan = repeat((FixedLength(maximum=self.block), self.candidates))
        search = Search(plan, lambda scores: top(scores, 1), self.sampling)
        return search.stream(request, engine, required(reward, self))

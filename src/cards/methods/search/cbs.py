"""Chunk-level beam search (weak-to-strong search, Zhou et al., NeurIPS 2024, arXiv 2405.19262)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class CBS(SearchMethod):
    """Continue each of W beams with K segments of L tokens, and keep the W best, until all beams are finished.

        beams   = top W of V(x, y + z) over beams y and their K segments z ~ q,   |z| = L
        V(x, y) = log pi_tuned(y | x) - log pi_untuned(y | x)

    `beams` is W, `children` is K, `block` is L. The paper uses 4, 4, 10, and 2, 2, 30 for chat. V is the reward of the
    decoder: an implicit reward of two small models gives the paper's V. The response is the best beam.

    Differs from the published code: a finished beam is kept once. The code copies it K times, and the copies displace others.
    """

    name: ClassVar[str] = "cbs"
    summary: ClassVar[str] = "Run beam search over segments by reward (weak-to-strong search)."

    beams: int = setting(
        4, help="Number of incomplete responses kept after each segment.", at_least=1, typical=(1, 16), client_at_most=32
    )
    children: int = setting(4, help="Number of continuations of each beam.", at_least=1, typical=(1, 16), client_at_most=32)
    block: int = setting(10, help="Number of tokens per segment.", at_least=1, typical=(1, 64))
    top_k: int | None = 50

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        boundary = FixedLength(maximum=self.block)
        plan = chain([(boundary, self.beams * self.children)], repeat((boundary, self.children)))
        search = Search(plan, lambda scores: top(scores, self.beams), self.sampling)
        return search.stream(request, engine, required(reward, self))

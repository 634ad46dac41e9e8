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
    """Continue each of W beams by K chunks of L tokens, keep the W of highest score, until all kept are finished.

        beams* = top W of V(x, y + z),   V(x, y) = log pi_tuned(y | x) - log pi_untuned(y | x)

    `beams` is W, `children` K, `block` L; the paper uses 4, 4, 10, and 2, 2, 30 for chat. V is the reward of the decoder: an
    implicit reward gives the paper's, from two small models, any other one its own. The answer is the best beam.

    Differs from the published code: a finished beam is kept once and not copied K times, so it takes no places from others.
    """

    name: ClassVar[str] = "cbs"
    summary: ClassVar[str] = "Beam search over chunks of tokens by reward (weak-to-strong search)."

    beams: int = setting(4, help="Incomplete responses kept after each chunk.", at_least=1, typical=(1, 16), client_at_most=32)
    children: int = setting(4, help="Continuations of each beam.", at_least=1, typical=(1, 16), client_at_most=32)
    block: int = setting(10, help="Number of tokens of a chunk.", at_least=1, typical=(1, 64))
    top_k: int | None = 50

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        chunk = FixedLength(maximum=self.block)
        plan = chain([(chunk, self.beams * self.children)], repeat((chunk, self.children)))
        search = Search(plan, lambda scores: top(scores, self.beams), self.sampling)
        return search.stream(request, engine, required(reward, self))

"""Speculative rejection: best-of-N that drops the worst incomplete responses (Sun et al., NeurIPS 2024, arXiv 2410.20290)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, count
from typing import ClassVar

from cards.acceptance import portion
from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeRejection(SearchMethod):
    """Start n responses, drop the fraction alpha with the lowest rewards at each decision point, and return the best left.

        decision points: after t = f, 2 f, 4 f, 8 f, ... tokens
        at each point:   keep the top (1 - alpha) by r(x, y_1:t), rounded up

    `reject` is alpha, `first` is f. Surviving responses continue from their own text; finished ones keep their reward.

    Differs from the published code, which decides whenever GPU memory is full; the surviving half then has room for twice
    the tokens. Here the lengths are settings, so the response does not depend on the device.
    """

    name: ClassVar[str] = "speculative-rejection"
    summary: ClassVar[str] = "Run best-of-n, but drop the worst incomplete responses at each decision point."

    n: int = setting(16, help="Number of responses at the start.", at_least=1, typical=(1, 32), client_at_most=64)
    reject: float = setting(0.5, help="Fraction of the responses dropped at each decision point.", at_least=0, below=1)
    first: int = setting(
        16, help="Number of tokens before the first decision point; doubled for each later one.", at_least=1, typical=(1, 64)
    )
    temperature: float = 1.0
    top_k: int | None = 50

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        doubling = ((FixedLength(maximum=self.first * 2**k), 1) for k in count())
        plan = chain([(FixedLength(maximum=self.first), self.n)], doubling)
        search = Search(plan, lambda scores: top(scores, len(scores) - int(portion(self.reject, len(scores)))), self.sampling)
        return search.stream(request, engine, required(reward, self))

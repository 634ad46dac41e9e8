"""Speculative rejection: best-of-N that stops the worst answers on the way (Sun et al., NeurIPS 2024, arXiv 2410.20290)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, count
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeRejection(SearchMethod):
    """Begin n answers; at each decision point drop the fraction alpha whose texts so far score lowest; give the best one left.

        decision points at t = f, 2 f, 4 f, 8 f, ... tokens:   keep the top (1 - alpha) of r(x, y_1:t), rounded up

    `reject` is alpha, `first` f. Survivors go on from their own text, finished ones stay as they are.

    Differs from the published code: that decides whenever the rows have filled the memory of the device, which the
    surviving half does after twice the tokens. Here these lengths are settings, so that a text does not depend on the device.
    """

    name: ClassVar[str] = "speculative-rejection"
    summary: ClassVar[str] = "Best-of-N that drops the worst responses on the way."

    n: int = setting(16, help="Responses that the search begins with.", at_least=1, typical=(1, 32), client_at_most=64)
    reject: float = setting(0.5, help="Fraction of the responses that each decision drops.", at_least=0, below=1)
    first: int = setting(
        16, help="Tokens before the first decision; each later decision comes at twice as many.", at_least=1, typical=(1, 64)
    )
    temperature: float = 1.0
    top_k: int | None = 50

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        doubling = ((FixedLength(maximum=self.first * 2**k), 1) for k in count())
        plan = chain([(FixedLength(maximum=self.first), self.n)], doubling)
        search = Search(plan, lambda scores: top(scores, len(scores) - int(len(scores) * self.reject)), self.sampling)
        return search.stream(request, engine, required(reward, self))

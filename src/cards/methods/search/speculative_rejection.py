"""Speculative rejection: best-of-N that stops the worst answers on the way (Sun et al., NeurIPS 2024, arXiv 2410.20290)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, count
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event
from cards.methods.base import Request, Sampled, required
from cards.methods.search.driver import Search, top
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class SpeculativeRejection(Sampled):
    """Begin n answers; at each decision point drop the fraction alpha whose texts so far score lowest; give the best one left.

        decision points at t = f, 2 f, 4 f, 8 f, ... tokens:   keep the top (1 - alpha) of r(x, y_1:t), rounded up

    `reject` is alpha, `first` f. Survivors go on from their own text, finished ones stay as they are.

    Differs from the published code: that decides whenever the rows have filled the memory of the device, which the
    surviving half does after twice the tokens. Here these lengths are settings, so that a text does not depend on the device.
    """

    name: ClassVar[str] = "speculative-rejection"

    n: int = 16
    reject: float = 0.5
    first: int = 16
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.n >= 1, f"n must be at least 1, not {self.n}.")
        check(0 <= self.reject < 1, f"reject must lie in [0, 1), not {self.reject}.")
        check(self.first >= 1, f"first must be at least 1 token, not {self.first}.")
        self.sampling  # noqa: B018  (checks its settings)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        doubling = ((FixedLength(maximum=self.first * 2**k), 1) for k in count())
        plan = chain([(FixedLength(maximum=self.first), self.n)], doubling)
        search = Search(plan, lambda scores: top(scores, len(scores) - int(len(scores) * self.reject)), self.sampling)
        return search.stream(request, engine, required(reward, self))

"""AdaSearch: blockwise search that spends most of its candidates on the first blocks (arXiv 2510.23334)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar, Literal

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response
from cards.methods.base import Request, Sampled, required
from cards.methods.search.driver import Search, top
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class AdaSearch(Sampled):
    """Best of T_k for block k = 0 .. B - 1 of B = max_tokens / block (rounded up), with T_k falling and of mean K:

        z_k* = argmax over T_k draws of r(x, y + z),   sum_k T_k = K B
        T_k  = 1 + share of B (K - 1) by w_k,          w_k = decay^k (exponential) or B - k (linear)

    `candidates` is K, so that an answer of full length costs as much as blockwise best-of-K, and a short one more.
    Shares are rounded down, and what is left goes to the first blocks, one each. The paper's schedules are not
    published as code: these two, and the floor of one candidate, are ours. decay 1 is blockwise best-of-K.
    """

    name: ClassVar[str] = "ada-search"

    candidates: int = 8
    block: int = 16
    schedule: Literal["exponential", "linear"] = "exponential"
    decay: float = 0.5
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(self.candidates >= 1, f"candidates must be at least 1, not {self.candidates}.")
        check(self.block >= 1, f"block must be at least 1 token, not {self.block}.")
        check(self.schedule in ("exponential", "linear"), f"schedule must be 'exponential' or 'linear', not {self.schedule!r}.")
        check(0 < self.decay <= 1, f"decay must lie in (0, 1], not {self.decay}.")
        self.sampling  # noqa: B018  (checks its settings)

    def counts(self, max_tokens: int) -> list[int]:
        """T_k for each block of an answer of so many tokens."""
        blocks = -(-max_tokens // self.block)
        weights = [self.decay**k if self.schedule == "exponential" else blocks - k for k in range(blocks)]
        extra = blocks * (self.candidates - 1)
        shares = [int(extra * w / sum(weights)) for w in weights]
        left = extra - sum(shares)
        return [1 + share + (k < left) for k, share in enumerate(shares)]

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        counts = self.counts(request.ask(Response()).max_tokens)
        plan = [(FixedLength(maximum=self.block), n) for n in counts]
        search = Search(plan, lambda scores: top(scores, 1), self.sampling)
        return search.stream(request, engine, required(reward, self))

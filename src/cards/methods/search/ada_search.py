"""AdaSearch: blockwise search that spends most of its candidates on the first blocks (arXiv 2510.23334)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar, Literal

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Event, Response
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaSearch(SearchMethod):
    """Best of T_k for block k = 0 .. B - 1 of B = max_tokens / block (rounded up), with T_k falling and of mean K:

        z_k* = argmax over T_k draws of r(x, y + z),   sum_k T_k = K B
        T_k  = 1 + share of B (K - 1) by w_k,          w_k = decay^k (exponential) or B - k (linear)

    `candidates` is K, so that an answer of full length costs as much as blockwise best-of-K, and a short one more.
    Shares are rounded down, and what is left goes to the first blocks, one each. The paper's schedules are not
    published as code: these two, and the floor of one candidate, are ours. decay 1 is blockwise best-of-K.
    """

    name: ClassVar[str] = "ada-search"
    summary: ClassVar[str] = "Blockwise best-of-K with more candidates for the first blocks."
    siblings: ClassVar[bool] = True

    candidates: int = setting(8, help="Mean number of candidates of a block.", at_least=1, typical=(1, 32), client_at_most=64)
    block: int = setting(16, help="Number of tokens of a block.", at_least=1, typical=(1, 64))
    schedule: Literal["exponential", "linear"] = setting(
        "exponential", help="How the number of candidates falls from block to block."
    )
    decay: float = setting(
        0.5,
        help="Ratio of the candidates of a block, beyond one, to those of the block before (exponential schedule).",
        above=0,
        at_most=1,
    )

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

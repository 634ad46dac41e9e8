"""AdaSearch: blockwise search that spends most of its candidates on the first segments (arXiv 2510.23334)."""

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
    """Keep the best of T_k candidates for segment k = 0 .. B - 1, B = ceil(max_tokens / block), where T_k falls with k.

        T_k  = 1 + share of B (K - 1), proportional to w_k      sum of T_k over k = K B
        w_k  = decay^k (exponential)  or  B - k (linear)
        z_k* = argmax of r(x, y + z) over T_k candidates z ~ q(. | x, y),   |z| = block

    `candidates` is K, so a response of full length costs as much as blockwise best-of-K, and a shorter one more. Shares are
    rounded down, and the remainder goes to the first segments, one candidate each. The paper has no published code: the two
    schedules and the minimum of one candidate are ours. decay 1 is blockwise best-of-K.
    """

    name: ClassVar[str] = "ada-search"
    summary: ClassVar[str] = "Run blockwise search with more candidates for the first segments."
    siblings: ClassVar[bool] = True

    candidates: int = setting(8, help="Mean number of candidates per segment.", at_least=1, typical=(1, 32), client_at_most=64)
    block: int = setting(16, help="Number of tokens per segment.", at_least=1, typical=(1, 64))
    schedule: Literal["exponential", "linear"] = setting(
        "exponential", help="Rule by which the number of candidates falls from segment to segment."
    )
    decay: float = setting(
        0.5,
        help="Factor by which the candidates of a segment, beyond the first, shrink (exponential schedule).",
        above=0,
        at_most=1,
    )

    def counts(self, max_tokens: int) -> list[int]:
        """Return T_k for each segment of a response of `max_tokens` tokens."""
        segments = -(-max_tokens // self.block)
        weights = [self.decay**k if self.schedule == "exponential" else segments - k for k in range(segments)]
        extra = segments * (self.candidates - 1)
        shares = [int(extra * w / sum(weights)) for w in weights]
        remainder = extra - sum(shares)
        return [1 + share + (k < remainder) for k, share in enumerate(shares)]

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        counts = self.counts(request.ask(Response()).max_tokens)
        plan = [(FixedLength(maximum=self.block), n) for n in counts]
        search = Search(plan, lambda scores: top(scores, 1), self.sampling)
        return search.stream(request, engine, required(reward, self))

"""TreeBoN: best-of-N over a tree that is pruned layer by layer (Qiu et al., 2024, arXiv 2410.16033)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar

from cards.boundaries import FixedLength, Whole
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response
from cards.methods.base import Request, RewardLike, loaded, required
from cards.methods.search.driver import Search, SearchMethod, Stage, top
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBoN(SearchMethod):
    """Run best-of-n over a tree: after each of D layers keep the N / C best responses with C children each.

        layers 1 .. D - 1, ceil(max_tokens / D) tokens each:  keep the top N / C by g(x, y)
        layer D, to the end of the responses:                 return argmax r(x, y)

    `n` is N, `children` is C, `layers` is D. The guide g scores incomplete responses; without one, g = r. The paper's guide is
    an implicit reward: sum of log(pi_DPO(y_k | .) / pi_ref(y_k | .)) / (k + 1) over the tokens k of the response.

    Responses that end in an early layer stay in the tree and compete as they are.
    """

    name: ClassVar[str] = "tree-bon"
    summary: ClassVar[str] = "Run best-of-n over a tree of incomplete responses that is pruned layer by layer."

    n: int = setting(16, help="Number of responses at the start.", at_least=1, typical=(1, 32), client_at_most=64)
    children: int = setting(
        4, help="Number of continuations of each kept response.", at_least=1, typical=(1, 16), client_at_most=32
    )
    layers: int = setting(4, help="Number of layers into which max_tokens is divided.", at_least=1, typical=(1, 16))
    guide: RewardLike | None = setting(
        None, help="Reward that scores incomplete responses (none: the reward itself).", loads="reward"
    )

    def validate(self) -> None:
        check(self.children <= self.n, f"children must be between 1 and n = {self.n}, got {self.children}.")

    def plan(self, max_tokens: int) -> list[Stage]:
        """Return the boundary and the number of continuations of each layer."""
        layer = FixedLength(maximum=-(-max_tokens // self.layers))
        counts = chain([self.n], repeat(self.children))
        return list(zip([*[layer] * (self.layers - 1), Whole()], counts, strict=False))

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        plan = self.plan(request.ask(Response()).max_tokens)
        guide = None if self.guide is None else loaded(self.guide)
        search = Search(plan, lambda scores: top(scores, self.n // self.children), self.sampling, guide=guide)
        return search.stream(request, engine, required(reward, self))

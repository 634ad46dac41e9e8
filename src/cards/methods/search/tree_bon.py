"""TreeBoN: best-of-N over a tree that is pruned on the way (Qiu et al., 2024, arXiv 2410.16033)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar, cast

from cards.boundaries import FixedLength, Whole
from cards.engines.base import Engine
from cards.errors import check
from cards.events import Event, Response
from cards.methods.base import Request, RewardLike, Sampled, model_setting, required
from cards.methods.search.driver import Block, Search, top
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class TreeBoN(Sampled):
    """N roots; after each of `layers` layers the N / C best live on with C children each; the answer is the best leaf.

        layer 1 .. D - 1, ceil(max_tokens / D) tokens each:  keep the top N / C by g(x, y)
        layer D, to the end of the answers:                  argmax r(x, y)

    `n` is N, `children` C, `layers` D. The guide g scores the incomplete texts (None: the reward r does); the paper's is
    an implicit reward, sum_k log(pi_DPO(y_k | .) / pi_ref(y_k | .)) / (k + 1) over the tokens k of the answer.

    Answers that end in an early layer stay in the tree as they are, beside the incomplete ones.
    """

    name: ClassVar[str] = "tree-bon"

    n: int = 16
    children: int = 4
    layers: int = 4
    guide: RewardLike | None = model_setting("reward", None)
    temperature: float = 0.7
    top_k: int | None = 40
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check(1 <= self.children <= self.n, f"children must lie in 1 .. n = {self.n}, not {self.children}.")
        check(self.layers >= 1, f"layers must be at least 1, not {self.layers}.")
        self.sampling  # noqa: B018  (checks its settings)

    def plan(self, max_tokens: int) -> list[Block]:
        """What each layer draws, for answers of so many tokens."""
        layer = FixedLength(maximum=-(-max_tokens // self.layers))
        counts = chain([self.n], repeat(self.children))
        return list(zip([*[layer] * (self.layers - 1), Whole()], counts, strict=False))

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        plan = self.plan(request.ask(Response()).max_tokens)
        guide = cast("Reward | None", self.guide)
        search = Search(plan, lambda scores: top(scores, self.n // self.children), self.sampling, guide=guide)
        return search.stream(request, engine, required(reward, self))

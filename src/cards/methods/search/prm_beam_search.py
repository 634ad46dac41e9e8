"""Beam search over reasoning steps with a process reward model (Snell et al., arXiv 2408.03314; search-and-learn)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import ClassVar

from cards.boundaries import Boundary, Step
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, RewardLike, loaded, required
from cards.methods.search.driver import Search, SearchMethod, top
from cards.rewards.base import Reward
from cards.settings import setting

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSearch(SearchMethod):
    """Base class of searches over steps with `children` candidates for each kept response."""

    children: int = setting(
        4, help="Number of continuations of each kept response.", at_least=1, typical=(1, 16), client_at_most=32
    )
    process: RewardLike | None = setting(
        None, help="Process reward model that scores the steps (none: the reward).", loads="reward"
    )
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)
    temperature: float = 0.8
    top_k: int | None = None

    @property
    def guide(self) -> Reward | None:
        """Return the loaded process reward model, or None."""
        return None if self.process is None else loaded(self.process)


@dataclass(frozen=True, slots=True, kw_only=True)
class PRMBeamSearch(StepSearch):
    """Keep the `beams` responses whose last step is best, continue each with `children` steps, and repeat until all end.

        first step:  beams * children candidates ~ q
        each step:   keep the `beams` of highest r(x, y), continue each with `children` steps ~ q
        response:    argmax of r(x, y) over the finished responses

    `process` scores incomplete responses in place of the reward, which then chooses only among the finished ones. children is M
    in the published code, and beams * children is N. A finished response stays among the candidates and is not continued. This
    is CBS with steps as segments.
    """

    name: ClassVar[str] = "prm-beam-search"
    summary: ClassVar[str] = "Run beam search over reasoning steps by a process reward."

    beams: int = setting(
        4, help="Number of incomplete responses kept after each step.", at_least=1, typical=(1, 16), client_at_most=32
    )

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        plan = chain([(self.boundary, self.beams * self.children)], repeat((self.boundary, self.children)))
        search = Search(plan, lambda scores: top(scores, self.beams), self.sampling, guide=self.guide)
        return search.stream(request, engine, required(reward, self))

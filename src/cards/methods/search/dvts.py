"""DVTS, diverse verifier tree search (Beeching et al., Hugging Face search-and-learn, 2024)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar

from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, required
from cards.methods.search.driver import Search, top
from cards.methods.search.prm_beam_search import StepSearch
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DVTS(StepSearch):
    """Search several trees independently: in each, keep the best of M = `children` steps until the response ends.

        in each tree:  z* = argmax of r(x, y + z_i) over z_1 .. z_M ~ q
        response:      argmax of r(x, y) over the responses of the trees

    The trees never compete before they end, so the search stays diverse where beam search collapses to one beginning.
    `process` scores incomplete responses in place of the reward, which then chooses among the trees. trees * children is N in
    the published code. One tree is blockwise best-of-K with steps as blocks.
    """

    name: ClassVar[str] = "dvts"
    summary: ClassVar[str] = "Keep the best step in each of several independent trees, and return the best response."

    trees: int = setting(4, help="Number of independent trees.", at_least=1, typical=(1, 16), client_at_most=32)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        search = Search(
            repeat((self.boundary, self.children)),
            lambda scores: top(scores, 1),
            self.sampling,
            guide=self.guide,
            trees=self.trees,
        )
        return search.stream(request, engine, required(reward, self))

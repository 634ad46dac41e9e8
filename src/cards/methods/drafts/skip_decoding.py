"""Skip decoding: the LM without some of its layers is its own draft."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine, check_gamma
from cards.errors import check
from cards.events import Event
from cards.methods.base import Request
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class SkipDecoding(Vanilla):
    """y ~ q as plain sampling, by exact speculative sampling in which part of the LM's own layers are the draft.

    The draft skips `skipped` of the layers: kept is number round((n - 1) (i / (k - 1)) ** 1.5) for i = 0 .. k - 1, of n layers
    k, so that few are skipped at first, ever more higher up, and never the first or the last.

    Hierarchical skip decoding (arXiv 2403.14919) skips layers, about half of them, as the answer grows, and takes the
    text of the shortened model. Here the layers are the same for all tokens, so that each has keys and values for all that
    came before, and the whole model tests what they wrote: the law is the LM's. Weights are shared, slots are not.
    """

    name: ClassVar[str] = "skip-decoding"
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    skipped: float = 0.5
    gamma: int = 4

    def __post_init__(self) -> None:
        Vanilla.__post_init__(self)
        check_gamma(self.gamma)
        check(0 < self.skipped < 1, f"skipped must lie in (0, 1), a share of the layers, not {self.skipped}.")

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        from cards.backends.local.skipping import skipping

        engine = SpeculativeEngine(engine, skipping(engine, self.skipped), self.gamma)
        return Vanilla.stream(self, request, engine, reward)

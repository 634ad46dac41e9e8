"""Speculative sampling: plain sampling in fewer steps of the LM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import ClassVar, cast

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine, check_gamma
from cards.events import Event
from cards.methods.base import EngineLike, Request, model_setting
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward


@dataclass(frozen=True, slots=True)
class Speculative(Vanilla):
    """y ~ q as plain sampling, by exact speculative sampling (arXiv 2211.17192, 2302.01318): `draft` writes gamma tokens ahead.

    A drafted token v is kept with probability min(1, p(v) / q(v)), p the LM and q the draft under the same temperature,
    top_k and top_p; in place of the first that is not kept comes one from max(0, p - q), normalised; behind `gamma` kept ones
    comes one from p. The law is the LM's, whatever the draft (see engines/speculative.py).
    """

    name: ClassVar[str] = "speculative"
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    draft: EngineLike = model_setting("engine", "tiny-draft")
    gamma: int = 4

    def __post_init__(self) -> None:
        Vanilla.__post_init__(self)
        check_gamma(self.gamma)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        engine = SpeculativeEngine(engine, cast(Engine, self.draft), self.gamma)
        return Vanilla.stream(self, request, engine, reward)

"""RAD, Reward-Augmented Decoding (Deng and Raffel, EMNLP 2023, arXiv 2310.09520)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.errors import check
from cards.methods.base import target_of
from cards.methods.tokens.driver import Guided
from cards.rewards.base import Reward

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True)
class RAD(Guided):
    """Logits rise by a bounded reward.

        rho(v) = logistic((r(x, y + v) - target) / scale)
        y_t    ~ softmax((logit(v) + weight clip(rho(v), 0, 1)) / temperature)     v among the top_k likeliest

    weight is the paper's beta. The paper trains its RM to give rho in [0, 1]; other RMs have no bounds, so the logistic
    function squashes their rewards around target (None: what the reward suggests). scale None takes rewards as they are.

    Differs from the published code: the squash, and any RM may be used; one that is causal reads only what is new.
    """

    name: ClassVar[str] = "rad"

    weight: float = 10.0
    top_k: int = 20
    temperature: float = 1.0
    target: float | None = None
    scale: float | None = 1.0

    def __post_init__(self) -> None:
        Guided.__post_init__(self)
        check(self.scale is None or self.scale > 0, f"scale must be positive or None (no squash), not {self.scale}.")

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        import numpy as np

        if self.scale is not None:
            distance = (rewards - target_of(self.target, reward)) / self.scale
            rewards = (1 + np.tanh(distance / 2)) / 2  # the logistic function, without overflow
        return Guided.score(self, logits, np.clip(rewards, 0, 1), reward)

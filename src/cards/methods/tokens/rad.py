"""RAD, Reward-Augmented Decoding (Deng and Raffel, EMNLP 2023, arXiv 2310.09520)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.base import target_of
from cards.methods.tokens.driver import Guided
from cards.rewards.base import Reward
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RAD(Guided):
    """Logits rise by a bounded reward.

        rho(v) = logistic((r(x, y + v) - target) / scale)
        y_t    ~ softmax((logit(v) + weight clip(rho(v), 0, 1)) / temperature)     v among the top_k likeliest

    weight is the paper's beta. The paper trains its RM to give rho in [0, 1]; other RMs have no bounds, so the logistic
    function squashes their rewards around target (None: what the reward suggests). scale None takes rewards as they are.

    Differs from the published code: the squash, and any RM may be used; one that is causal reads only what is new.
    """

    name: ClassVar[str] = "rad"
    summary: ClassVar[str] = "Add a bounded reward to the logits."

    weight: float = 10.0
    top_k: int = 20
    temperature: float = 1.0
    target: float | None = setting(None, help="Reward at which half the weight is given (none: suggested by the reward model).")
    scale: float | None = setting(
        1.0,
        help="Width of the range of rewards around the target (none: rewards lie between 0 and 1).",
        above=0,
        typical=(0.05, 5),
        advanced=True,
    )

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        import numpy as np

        if self.scale is not None:
            distance = (rewards - target_of(self.target, reward)) / self.scale
            rewards = (1 + np.tanh(distance / 2)) / 2  # the logistic function, without overflow
        return Guided.score(self, logits, np.clip(rewards, 0, 1), reward)

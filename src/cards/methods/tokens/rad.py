"""RAD, Reward-Augmented Decoding (Deng and Raffel, EMNLP 2023, arXiv 2310.09520)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.base import target_of
from cards.methods.tokens.driver import RewardGuidedMethod
from cards.rewards.base import Reward
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RAD(RewardGuidedMethod):
    """Add a bounded reward to the logits.

        rho(v) = logistic((r(x, y + v) - target) / scale)
        y_t    ~ softmax((logit(v) + weight clip(rho(v), 0, 1)) / temperature)     v: the top_k most likely tokens

    weight is beta in the paper. The paper trains its reward model to return rho in [0, 1]. Other rewards are unbounded, so the
    logistic function maps them around `target` (None: suggested by the reward). Rewards that are probabilities, and all rewards
    with scale None, are used as they are.

    Differs from the published code: the logistic function, and any reward model works. A causal one reads only new tokens.
    """

    name: ClassVar[str] = "rad"
    summary: ClassVar[str] = "Add a bounded reward to the logits."

    weight: float = 10.0
    top_k: int = 20
    temperature: float = 1.0
    target: float | None = setting(None, help="Reward that gets half the weight (none: suggested by the reward model).")
    scale: float | None = setting(
        1.0,
        help="Scale of rewards around the target (none: rewards are between 0 and 1).",
        above=0,
        typical=(0.05, 5),
        advanced=True,
    )

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        import numpy as np

        if self.scale is not None and reward.scale != "probability":
            distance = (rewards - target_of(self.target, reward)) / self.scale
            rewards = (1 + np.tanh(distance / 2)) / 2  # the logistic function, without overflow
        return RewardGuidedMethod.score(self, logits, np.clip(rewards, 0, 1), reward)

"""FUDGE, controlled generation with future discriminators (Yang and Klein, NAACL 2021, arXiv 2104.05218)."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.tokens.driver import RewardGuidedMethod
from cards.rewards.base import Reward
from cards.rewards.scale import to_probability
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class FUDGE(RewardGuidedMethod):
    """Multiply next-token probabilities by the probability that the response will have an attribute.

        y_t ~ q(v) P(a | x, y + v)^weight, normalised     v: the top_k most likely tokens, q: the LM under temperature

    P is the reward if its scale is `probability`, else its sigmoid. The paper trains a classifier for it that reads incomplete
    responses. weight is lambda in the published code. temperature 0 takes argmax log p(v) + weight log P.
    """

    name: ClassVar[str] = "fudge"
    summary: ClassVar[str] = "Multiply next-token probabilities by the probability of an attribute of the response."

    weight: float = setting(1.0, help="Exponent of the probability of the attribute.", at_least=0, typical=(0, 10))
    top_k: int = 200
    temperature: float = setting(
        1.0, help="Temperature of the LM, before the attribute; 0 takes the highest score.", at_least=0, typical=(0, 2)
    )

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        import numpy as np

        least = sys.float_info.min  # so that a probability of 0 has a logarithm
        log_p = np.array([math.log(max(least, to_probability(float(r), reward.scale))) for r in rewards])
        return logits + (self.temperature or 1.0) * self.weight * log_p  # sampling divides by the temperature

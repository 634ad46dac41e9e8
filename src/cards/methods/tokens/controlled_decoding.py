"""Controlled decoding, token by token (Mudgal et al., ICML 2024, arXiv 2310.17022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.tokens.driver import RewardGuidedMethod
from cards.rewards.base import Reward
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlledDecoding(RewardGuidedMethod):
    """Tilt next-token probabilities by the value of the response that each token leads to.

        y_t ~ q(v) exp(weight V(x, y + v)), normalized     q: the LM under temperature, restricted to its top_k tokens
        y_t = argmax log p(v) + weight V(x, y + v)         with temperature 0; p: the LM

    weight is lambda in the paper. V(x, y) is the expected reward of the responses that begin with y. The reward of the
    incomplete response stands in for it: a value head gives V itself, a reward model of complete responses only an estimate.

    Differs from the paper: the reward reads top_k texts per token, so tokens beyond the top_k are excluded.
    """

    name: ClassVar[str] = "controlled-decoding"
    summary: ClassVar[str] = "Tilt next-token probabilities by the value of the response with each token."

    weight: float = setting(
        1.5, help="Weight of the value; probabilities are multiplied by exp(weight * value).", at_least=0, typical=(0, 20)
    )
    top_k: int = 20
    temperature: float = setting(
        0.7, help="Temperature of the LM, before the tilt; 0 takes the highest score.", at_least=0, typical=(0, 2)
    )

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        return logits + (self.temperature or 1.0) * self.weight * rewards  # sampling divides by the temperature

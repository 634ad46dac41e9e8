"""Controlled decoding, token by token (Mudgal et al., ICML 2024, arXiv 2310.17022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.tokens.driver import Guided
from cards.rewards.base import Reward

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlledDecoding(Guided):
    """Next-token probabilities are tilted by the value of what they lead to.

        y_t ~ q(v) exp(weight V(x, y + v)), normalised     q: the LM under temperature, on its top_k likeliest tokens

    weight is the paper's lambda. V(x, y) is the reward expected of answers that the LM begins with y. It is what the
    reward gives to incomplete answers: a value head gives it as meant, an RM of whole answers only roughly.

    Differs from the paper: a reward reads top_k texts a token, so tokens beyond the top_k get none.
    """

    name: ClassVar[str] = "controlled-decoding"
    summary: ClassVar[str] = "Tilt next-token probabilities by the value of the response with each token."

    top_k: int = 20
    temperature: float = 0.7

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        return logits + self.temperature * self.weight * rewards  # the weight outlives the division by the temperature

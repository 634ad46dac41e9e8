"""SIA, Sparse Inference-time Alignment (Hu et al., 2026, arXiv 2602.21215)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.tokens.controlled_decoding import ControlledDecoding
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class SIA(ControlledDecoding):
    """Apply controlled decoding only to tokens that the LM is uncertain about.

        y_t ~ q(v) exp(weight r(x, y + v)), normalized     if H(p) >= min_entropy
        y_t ~ q(v)                                         otherwise

    H(p) is the entropy, in nats, of the LM's next token (temperature 1, whole vocabulary). q is the LM under temperature and
    top_k. A lower min_entropy steers more tokens and costs more; the paper steers 20% to 80% of them.

    The form of the tilt and the threshold are ours. We know only the idea and the findings of the paper.
    """

    name: ClassVar[str] = "sia"
    summary: ClassVar[str] = "Apply controlled decoding only to tokens that the model is uncertain about."

    min_entropy: float = setting(
        3.0, help="Minimum entropy of the next token, in nats, at which the reward is used.", at_least=0, typical=(0, 10)
    )

    def uses_reward(self, logits: Floats) -> bool:
        import numpy as np

        p = np.exp(logits - logits.max())
        p = p[p > 0] / p.sum()
        return float(-(p * np.log(p)).sum()) >= self.min_entropy

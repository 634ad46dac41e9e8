"""Contrastive decoding on logits (O'Brien and Lewis, 2023, arXiv 2309.09117)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.methods.tokens.contrastive_decoding import ContrastiveMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveDecodingLogits(ContrastiveMethod):
    """Push the logits of the LM away from those of an amateur, a smaller LM, and sample.

        score(v) = (1 + weight) s_LM(v) - weight s_amateur(v)     if s_LM(v) >= log(plausibility) + max s_LM, else -inf
        y_t      ~ softmax(score / temperature)

    s are raw logits. weight is beta in the paper, plausibility is alpha. With weight 0 the law is the LM's, restricted to the
    plausible tokens.

    Written from the formula of the paper, without published code to compare.
    """

    name: ClassVar[str] = "contrastive-decoding-logits"
    summary: ClassVar[str] = "Sample from the model's logits, pushed away from those of a smaller model."

    temperature: float = 0.7
    weight: float = setting(0.5, help="Weight of the amateur's logits.", at_least=0, typical=(0, 20))

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        [amateur] = others
        return self.contrast(1 + self.weight, logits, self.weight, amateur)

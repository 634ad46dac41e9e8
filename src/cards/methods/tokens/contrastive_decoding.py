"""Contrastive decoding (Li et al., ACL 2023, arXiv 2210.15097)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.methods.base import EngineLike, loaded
from cards.methods.tokens.driver import Mixed
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast(Mixed):
    """Base: tokens that the LM finds plausible, p(v) >= plausibility max p, compete by what it holds of them more than an
    amateur does; others are out of the question. plausibility is the papers' alpha."""

    temperature: float = 0.0
    top_k: int | None = None
    amateur: EngineLike = setting(
        "tiny-draft", help="Smaller LM of the same tokenizer, whose preferences are subtracted.", loads="engine"
    )
    plausibility: float = setting(
        0.1, help="Fraction of the highest probability below which tokens are excluded.", above=0, at_most=1, typical=(0.01, 1)
    )

    @property
    def others(self) -> Sequence[Engine]:
        return (loaded(self.amateur),)

    def contrast(self, logits: Floats, gain: Floats, loss: Floats) -> Floats:
        """gain - loss where the LM with these logits finds a token plausible, -inf elsewhere; all [vocabulary]."""
        import numpy as np

        plausible = np.exp(logits - logits.max()) >= self.plausibility
        return np.subtract(gain, loss, where=plausible, out=np.full_like(logits, -np.inf))


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveDecoding(Contrast):
    """The LM's plausible tokens compete by how much likelier they are to it than to an amateur, a smaller LM.

        score(v) = log p_LM(v) - log p_amateur(v)     where p_LM(v) >= plausibility max p_LM, -inf elsewhere

    p_amateur is taken at amateur_temperature. temperature 0 takes the highest score; else the draw is from
    softmax(score / temperature). plausibility is the paper's alpha, amateur_temperature its tau.

    Differs from the published code: greedy search, where the paper has a beam of 5.
    """

    name: ClassVar[str] = "contrastive-decoding"
    summary: ClassVar[str] = "Choose tokens that are much more likely under the model than under a smaller one."

    amateur_temperature: float = setting(1.0, help="Temperature of the amateur.", above=0, typical=(0.1, 2), advanced=True)

    def mix(self, logits: Floats, *others: Floats) -> Floats:
        [amateur] = others
        return self.contrast(logits, logits, amateur / self.amateur_temperature)  # logs of p, each up to a constant

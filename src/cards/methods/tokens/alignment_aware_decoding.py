"""Alignment-aware decoding (Berdoz et al., ICML 2026, arXiv 2509.26169)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import Source, plausible, scaled
from cards.methods.base import EngineLike, loaded
from cards.methods.tokens.driver import LogitsMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentAwareDecoding(LogitsMethod):
    """Choose among plausible tokens by the implicit reward of an aligned LM.

        y_t = argmax of log p(v) - log p_reference(v)     over the tokens with p(v) >= plausibility max p

    p is the LM, which preference optimisation (DPO) has aligned, and p_reference the LM before it. The difference is the
    implicit reward of the token, up to a factor. plausibility is alpha in the paper. temperature 0 takes the highest score;
    otherwise the token is sampled from softmax(score / temperature).
    """

    name: ClassVar[str] = "alignment-aware-decoding"
    summary: ClassVar[str] = "Choose tokens by what alignment has changed in an aligned model."

    temperature: float = 0.0
    top_k: int | None = None
    reference: EngineLike = setting("tiny", help="The LM before it was aligned.", loads="engine")
    plausibility: float = setting(
        0.1, help="Fraction of the highest probability below which tokens are excluded.", above=0, at_most=1, typical=(0.01, 1)
    )

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(self.reference))]

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        [reference] = others
        return plausible(logits, logits + scaled(-1, reference), self.plausibility)

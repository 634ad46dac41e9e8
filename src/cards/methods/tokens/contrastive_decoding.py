"""Contrastive decoding (Li et al., ACL 2023, arXiv 2210.15097)."""

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
class ContrastiveMethod(LogitsMethod):
    """Base class of methods that choose among the tokens with p(v) >= plausibility max p by contrast with an amateur.

    plausibility is alpha in the papers.
    """

    temperature: float = 0.0
    top_k: int | None = None
    amateur: EngineLike = setting(
        "tiny-draft", help="Smaller LM with the same tokenizer, whose preferences are subtracted.", loads="engine"
    )
    plausibility: float = setting(
        0.1, help="Fraction of the highest probability below which tokens are excluded.", above=0, at_most=1, typical=(0.01, 1)
    )

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(self.amateur))]

    def contrast(self, gain: float, logits: Floats, loss: float, amateur: Floats) -> Floats:
        """Return gain * logits - loss * amateur for tokens that are plausible by the logits, and -inf for others."""
        return plausible(logits, scaled(gain, logits) + scaled(-loss, amateur), self.plausibility)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastiveDecoding(ContrastiveMethod):
    """Choose among plausible tokens by how much more likely they are under the LM than under an amateur, a smaller LM.

        score(v) = log p_LM(v) - log p_amateur(v)     if p_LM(v) >= plausibility max p_LM, else -inf

    p_amateur is taken at amateur_temperature, and is at least the smallest positive float. temperature 0 takes the highest
    score; otherwise the token is sampled from softmax(score / temperature). plausibility is alpha in the paper,
    amateur_temperature is tau.

    Differs from the published code: greedy search, while the paper uses a beam of 5.
    """

    name: ClassVar[str] = "contrastive-decoding"
    summary: ClassVar[str] = "Choose tokens that are much more likely under the model than under a smaller one."

    amateur_temperature: float = setting(1.0, help="Temperature of the amateur.", above=0, typical=(0.1, 2), advanced=True)

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        [amateur] = others
        return self.contrast(1, logits, 1 / self.amateur_temperature, amateur)  # log p, each up to a constant

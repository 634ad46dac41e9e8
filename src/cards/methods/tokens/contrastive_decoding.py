"""Contrastive decoding (Li et al., ACL 2023, arXiv 2210.15097)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from cards.engines.base import Engine
from cards.errors import check
from cards.methods.base import EngineLike, model_setting
from cards.methods.tokens.driver import Mixed

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True)
class Contrast(Mixed):
    """Base: tokens that the LM finds plausible, p(v) >= plausibility max p, compete by what it holds of them more than an
    amateur does; others are out of the question. plausibility is the papers' alpha."""

    temperature: float = 0.0
    top_k: int | None = None
    amateur: EngineLike = model_setting("engine", "tiny-draft")
    plausibility: float = 0.1

    def __post_init__(self) -> None:
        Mixed.__post_init__(self)
        check(0 < self.plausibility <= 1, f"plausibility must lie in (0, 1], not {self.plausibility}.")

    @property
    def others(self) -> Sequence[Engine]:
        return (cast(Engine, self.amateur),)

    def contrast(self, logits: Floats, gain: Floats, loss: Floats) -> Floats:
        """gain - loss where the LM with these logits finds a token plausible, -inf elsewhere; all [vocabulary]."""
        import numpy as np

        plausible = np.exp(logits - logits.max()) >= self.plausibility
        return np.subtract(gain, loss, where=plausible, out=np.full_like(logits, -np.inf))


@dataclass(frozen=True, slots=True)
class ContrastiveDecoding(Contrast):
    """The LM's plausible tokens compete by how much likelier they are to it than to an amateur, a smaller LM.

        score(v) = log p_LM(v) - log p_amateur(v)     where p_LM(v) >= plausibility max p_LM, -inf elsewhere

    p_amateur is taken at amateur_temperature. temperature 0 takes the highest score; else the draw is from
    softmax(score / temperature). plausibility is the paper's alpha, amateur_temperature its tau.

    Differs from the published code: greedy search, where the paper has a beam of 5.
    """

    name: ClassVar[str] = "contrastive-decoding"

    amateur_temperature: float = 1.0

    def __post_init__(self) -> None:
        Contrast.__post_init__(self)
        check(
            0 < self.amateur_temperature < float("inf"),
            f"amateur_temperature must be positive, not {self.amateur_temperature}.",
        )

    def mix(self, logits: Floats, *others: Floats) -> Floats:
        [amateur] = others
        return self.contrast(logits, logits, amateur / self.amateur_temperature)  # logs of p, each up to a constant

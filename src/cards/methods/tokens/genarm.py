"""GenARM, reward guided generation with an autoregressive reward model (Xu et al., ICLR 2025, arXiv 2410.08193)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import Source, scaled
from cards.errors import check
from cards.methods.base import EngineLike, loaded
from cards.methods.tokens.driver import LogitsMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class GenARM(LogitsMethod):
    """Multiply next-token probabilities by those of guides, LMs that were tuned towards a reward.

        y_t ~ softmax((log pi(v) + sum_i weights_i log pi_i(v)) / temperature)

    pi is the LM and pi_i are the guides, which share its tokenizer. `weights` has one number for each guide (1/beta in the
    paper, or alpha_i for several). `guides` is a text of names separated by commas, or a tuple of engines.

    Differs from the published code: top_k is applied to the mixture and removes the tail of the vocabulary (None: all of it).
    """

    name: ClassVar[str] = "genarm"
    summary: ClassVar[str] = "Multiply next-token probabilities by those of models tuned towards a reward."

    guides: str | tuple[EngineLike, ...] = setting(
        "tiny-aligned", help="LMs with the same tokenizer, tuned towards a reward, separated by commas.", loads="engines"
    )
    weights: tuple[float, ...] = setting((1.0,), help="Weight of each guide.", advanced=True)

    def validate(self) -> None:
        count = len(self.guides.split(",") if isinstance(self.guides, str) else self.guides)
        check(
            len(self.weights) == count,
            f"weights must have one number for each of the {count} guides, got {len(self.weights)}.",
        )

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(guide)) for guide in self.guides]

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        return sum((scaled(w, other) for w, other in zip(self.weights, others, strict=True)), start=logits)

"""MOD, multi-objective decoding (Shi et al., NeurIPS 2024, arXiv 2406.18853)."""

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
class MOD(LogitsMethod):
    """Sample from the weighted product of LMs that were tuned towards several rewards.

        y_t ~ softmax(sum_i weights_i log pi_i(v) / temperature)

    pi_0 is the LM, and pi_1, pi_2, ... are `others`. If each pi_i is the optimum for the reward r_i under a penalty on the
    reverse KL divergence from one reference, and the weights sum to 1, this approximates the optimum for
    sum_i weights_i r_i, token by token. Other divergences of the paper are not implemented.
    """

    name: ClassVar[str] = "mod"
    summary: ClassVar[str] = "Sample from a weighted product of models that were tuned towards several rewards."

    others: str | tuple[EngineLike, ...] = setting(
        "tiny-aligned", help="Other LMs with the same tokenizer, separated by commas.", loads="engines"
    )
    weights: tuple[float, ...] = setting((0.5, 0.5), help="Weight of the LM, then of each other LM.")

    def validate(self) -> None:
        count = 1 + len(self.others.split(",") if isinstance(self.others, str) else self.others)
        check(
            len(self.weights) == count,
            f"weights must have {count} numbers, for the LM and each of the others, got {len(self.weights)}.",
        )

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(other)) for other in self.others]

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        own, *weights = self.weights
        return sum((scaled(w, other) for w, other in zip(weights, others, strict=True)), start=scaled(own, logits))

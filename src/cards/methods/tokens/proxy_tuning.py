"""Proxy tuning (Liu et al., COLM 2024, arXiv 2401.08565)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import Source, scaled
from cards.methods.base import EngineLike, loaded
from cards.methods.tokens.driver import LogitsMethod
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTuning(LogitsMethod):
    """Add to the logits of the LM what tuning changed in those of a smaller LM.

        y_t ~ softmax((s(v) + weight (s_tuned(v) - s_untuned(v))) / temperature)

    s are logits. The rule is also that of emulated fine-tuning (arXiv 2310.12962) and, with an expert and an anti-expert as
    `tuned` and `untuned`, of DExperts (arXiv 2105.03023), where weight is alpha. The papers of proxy tuning and emulated
    fine-tuning use weight 1. A token that `tuned` excludes is excluded; one that `untuned` excludes counts there as a token
    of the smallest positive probability.
    """

    name: ClassVar[str] = "proxy-tuning"
    summary: ClassVar[str] = "Add the change that tuning made to a smaller model to the logits of the model."

    tuned: EngineLike = setting("tiny-aligned", help="Tuned LM with the same tokenizer.", loads="engine")
    untuned: EngineLike = setting("tiny", help="The same LM before it was tuned.", loads="engine")
    weight: float = setting(1.0, help="Weight of the change.", typical=(0, 5))

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(self.tuned)), Source(loaded(self.untuned))]

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        tuned, untuned = others
        return logits + scaled(self.weight, tuned) + scaled(-self.weight, untuned)

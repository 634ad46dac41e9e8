"""Cascade: CARDS with a guide, a cheaper reward whose test comes before that of the reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.acceptance import Verdict
from cards.errors import SettingError, check
from cards.methods.base import RewardLike, loaded
from cards.methods.segments.cards import CARDS
from cards.methods.segments.driver import GuideFilter
from cards.rewards.base import Reward
from cards.sampling import GUIDE_VERDICT, VERDICT
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade(CARDS):
    """CARDS (arXiv 2406.16306) whose candidates must first pass a test by `guide`, g.

        a1 = min(1, exp((g(x, y + s) - tau1) / beta1))       tau1: guide_target, beta1: guide_beta
        a2 = min(1, exp((r(x, y + s) - tau(t)) / beta))      r is computed only if u1 < a1
        accept s if u1 < a1 and u2 < a2

    Without fallbacks an accepted segment follows q(s) a1(s) a2(s), normalized for each prefix. `coupled` uses one random
    number for both tests, u2 = u1. The law is then q(s) min(a1(s), a2(s)), normalized. This is the law of CARDS wherever
    a1 >= a2, and for the same seed the response equals that of CARDS until the guide rejects a candidate that CARDS accepts.
    Elsewhere the law of CARDS is out of reach without scoring the candidates that the guide rejects.

    After max_rejections rejections one more candidate is proposed. The fallback is the candidate with the highest reward
    among those that passed the guide; if none did, the best by the guide, and its reward is unknown.
    `guide_target` None takes the target that the guide suggests: 0 for an implicit reward. With guide_beta 1, and beta 1 in
    the implicit reward, a1 is then min(1, pi_tuned(y + s | x) / pi_untuned(y + s | x)). The combination is ours.
    """

    name: ClassVar[str] = "cascade"
    summary: ClassVar[str] = "Run CARDS with a guide, a cheaper reward that filters candidates before the reward model."

    guide: RewardLike = setting(
        "implicit:tiny-aligned,tiny", help="Cheaper reward that tests candidates before the reward model.", loads="reward"
    )
    guide_target: float | None = setting(None, help="Target reward of the guide (none: suggested by the guide).", advanced=True)
    guide_beta: float = setting(1.0, help="Softness of the guide's test.", above=0, typical=(0.05, 3), advanced=True)
    coupled: bool = setting(
        False, help="Use the same random number in both tests, to stay as close to CARDS as possible.", advanced=True
    )

    def validate(self) -> None:
        CARDS.validate(self)  # super() fails in a dataclass with slots
        for name, value in (("quantile", self.quantile), ("gain", self.gain)):
            check(
                value is None,
                f"cascade has no {name}, got {value}: candidates that the guide rejects are not scored. Set target.",
            )

    def resolved(self, reward: Reward) -> Cascade:
        return self

    @property
    def guide_filter(self) -> GuideFilter:
        guide = loaded(self.guide)
        target = guide.target if self.guide_target is None else self.guide_target
        if target is None:
            raise SettingError(f"No target reward is known for the guide {guide.name!r}: set guide_target.")
        verdict, tau = Verdict(self.guide_beta), target
        return GuideFilter(guide, lambda score, u: verdict.passes(score, tau, u), VERDICT if self.coupled else GUIDE_VERDICT)

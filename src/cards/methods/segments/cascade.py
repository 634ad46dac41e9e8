"""Cascade: CARDS with an early test by a cheaper reward; the reward model reads only what passes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.acceptance import Verdict
from cards.errors import SettingError, check
from cards.methods.base import RewardLike, loaded
from cards.methods.segments.cards import CARDS
from cards.methods.segments.driver import Sieve
from cards.sampling import GUIDE_VERDICT, VERDICT
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade(CARDS):
    """CARDS (arXiv 2406.16306) whose segments must first pass a test by `guide`, g; the rest as in CARDS.

        a1 = min(1, exp((g(x, y + s) - tau1) / beta1))       tau1: guide_target, beta1: guide_beta
        a2 = min(1, exp((r(x, y + s) - tau(t)) / beta))      asked only where u1 < a1
        accept if u1 < a1 and u2 < a2

    Without fallbacks an accepted segment follows q(s) a1(s) a2(s), normalised for each prefix. `coupled` takes one number for
    both tests, u2 = u1: the law is then q(s) min(a1(s), a2(s)), normalised, which is that of CARDS wherever the guide is
    the milder judge (a1 >= a2), and the text is CARDS's own for the same seed until the guide refuses what CARDS accepts.
    Where it is not, the law of CARDS cannot be had without asking the reward about what the guide refuses.

    After max_rejections rejections one more is drawn, and the best by the reward among those that passed the guide is kept,
    untested; if none did, the best by the guide, whose reward is not known then.
    guide_target None is what the guide suggests: 0 for an implicit reward, at which a1 with guide_beta 1 (and its own beta 1)
    is min(1, pi_tuned(y + s | x) / pi_untuned(y + s | x)). The combination is ours, not from a paper.
    """

    name: ClassVar[str] = "cascade"
    summary: ClassVar[str] = "CARDS with an early test by a cheaper reward; the reward model scores only what passes it."

    guide: RewardLike = setting(
        "implicit:tiny-aligned,tiny", help="Cheaper reward that tests candidates before the reward model.", loads="reward"
    )
    guide_target: float | None = setting(None, help="Target of the guide's test (none: suggested by the guide).", advanced=True)
    guide_beta: float = setting(1.0, help="Softness of the guide's test.", above=0, typical=(0.05, 3), advanced=True)
    coupled: bool = setting(
        False, help="Use one random number for both tests, as close to CARDS as the guide allows.", advanced=True
    )

    def validate(self) -> None:
        CARDS.validate(self)  # super() does not know the class that slots make
        check(
            self.quantile is None,
            "quantile needs the rewards of all pilots, but the guide keeps some of them from the reward: set target.",
        )

    @property
    def sieve(self) -> Sieve:
        guide = loaded(self.guide)
        target = guide.target if self.guide_target is None else self.guide_target
        if target is None:
            raise SettingError(f"No target is known for the guide {guide.name!r}: set guide_target.")
        verdict, tau = Verdict(self.guide_beta), target
        return Sieve(guide, lambda score, u: verdict.passes(score, tau, u), VERDICT if self.coupled else GUIDE_VERDICT)

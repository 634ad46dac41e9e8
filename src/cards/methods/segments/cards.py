"""CARDS, Cascade Reward Sampling (Li et al., COLM 2025, arXiv 2406.16306)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.acceptance import quantile_of
from cards.boundaries import Boundary, Entropy, Measure
from cards.engines.base import Ask, Engine
from cards.errors import check
from cards.events import Event, Proposed, Segment
from cards.methods.base import Request
from cards.methods.responses.driver import draw
from cards.methods.segments.driver import Rising
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class CARDS(Rising):
    """Accept segments, cut where the LM is unsure, by a quasi-rejection test against a rising reward threshold.

        r0     = (1 - alpha) r(x) + alpha r*
        tau(t) = min(r*, r0 + t (r* - r0) / n)           t: response tokens with the candidate's, n: max_tokens
        accept   if u < min(1, exp((r(x, y + s) - tau(t)) / beta))
        after max_rejections rejections draw one more and keep the best of all, untested (a fallback)

    Without fallbacks an accepted segment follows q(s) min(1, exp((r - tau(t)) / beta)), normalised for each prefix, with q
    the proposal: among segments of one length, q(s) exp(min(r, tau) / beta). target is r*, entropy_threshold tau_u; None
    takes what the RM and the LM are known to need (tau_u: 3.0 unless known). temperature None means beta, as in the paper.
    `width` candidates are drawn at once, which changes the speed and nothing else. `boundary` replaces the entropy rule.

    With `quantile` r* is the prompt's own, from the first `pilots` candidates of the first segment:

        r* = the ceil(quantile pilots)-th smallest of r(x, s_1) .. r(x, s_pilots),   s_i ~ q

    They are all drawn, then judged in order as the first candidates. Given r*, the first segment is the first pilot that
    passes: with alpha 1 one always does, and with the hard test each of the pilots - ceil(quantile pilots) + 1 of highest
    reward is as likely. Later segments have the law above, given r*. So r* needs no scale of rewards; this option is ours.

    Differs from the published code: one KV cache and no second pass at a boundary, end of text is honoured, the
    reward of the prompt is counted, the test is done on the log scale, non-finite rewards are refused.
    """

    name: ClassVar[str] = "cards"
    summary: ClassVar[str] = (
        "Accepts segments, cut where the model is uncertain, by a quasi-rejection test against a rising reward threshold."
    )

    quantile: float | None = setting(
        None,
        help="Target reward of each prompt: this quantile of the rewards of its own pilots (none: target).",
        at_least=0,
        at_most=1,
    )
    pilots: int = setting(
        8,
        help="First candidates of the first segment, whose rewards give the quantile.",
        at_least=1,
        typical=(1, 32),
        advanced=True,
    )
    entropy_threshold: float | None = setting(
        None,
        help="Uncertainty tau_u of a next token that ends a segment (none: suggested by the model, else 3.0).",
        at_least=0,
        typical=(0, 10),
    )
    measure: Measure = setting("entropy", help="Measure of uncertainty.", advanced=True)
    min_segment: int = setting(4, help="Minimum number of tokens of a segment.", at_least=1, typical=(1, 64), advanced=True)
    max_segment: int = setting(64, help="Maximum number of tokens of a segment.", at_least=1, typical=(1, 256), advanced=True)
    boundary: Boundary | None = setting(
        None, help="Rule that ends a segment (entropy: the rule of CARDS, by uncertainty).", advanced=True
    )

    def validate(self) -> None:
        check(
            self.quantile is None or self.target is None, "quantile finds the target reward r*: set one of the two, not both."
        )
        check(
            self.quantile is None or self.pilots <= self.max_rejections,
            f"pilots must be between 1 and max_rejections = {self.max_rejections}, got {self.pilots}.",
        )
        check(
            self.measure == "entropy" or self.entropy_threshold is not None or self.boundary is not None,
            f"measure {self.measure!r} has its own scale: set entropy_threshold too (mcp and evidential lie between 0 and 1).",
        )
        self.segments(3.0)

    def segments(self, known: float) -> Boundary:
        threshold = known if self.entropy_threshold is None else self.entropy_threshold
        return self.boundary or Entropy(self.min_segment, self.max_segment, threshold, self.measure)

    async def draw_pilots(
        self, request: Request, ask: Ask, engine: Engine, reward: Reward, drawn: list[Segment]
    ) -> AsyncGenerator[Event, None]:
        if self.quantile is not None:
            async with aclosing(draw(request.prompt, replace(ask, n=self.pilots), engine, reward, drawn)) as events:
                async for event in events:
                    if isinstance(event, Proposed):  # they are scored once there is a threshold
                        yield event

    def aim(self, reward: Reward, drawn: Sequence[Segment]) -> float:
        if self.quantile is None:
            return Rising.aim(self, reward, drawn)
        return quantile_of([cast(float, pilot.reward) for pilot in drawn], self.quantile)

"""CARDS, Cascade Reward Sampling (Li et al., COLM 2025, arXiv 2406.16306)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

from cards.acceptance import Schedule, quantile_of
from cards.boundaries import Boundary, Entropy, Measure
from cards.engines.base import Ask, Engine
from cards.errors import check
from cards.events import Event, Proposed, Segment
from cards.methods.base import Request
from cards.methods.responses.driver import propose_responses
from cards.methods.segments.driver import SegmentMethod
from cards.rewards.base import Reward
from cards.settings import setting

Ends = Literal["lm", "reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CARDS(SegmentMethod):
    """Accept or reject segments, which end where the LM is uncertain, by a test against a rising reward threshold.

        r0      = (1 - alpha) r(x) + alpha r*
        tau(t)  = min(r*, r0 + t (r* - r0) / n)       t: response tokens including the candidate's, n: max_tokens
        segment = sample q until H(next token) >= tau_u and len >= min_segment, or len = max_segment
        accept    if u < min(1, exp((r(x, y + segment) - tau(t)) / beta)),   u ~ U(0, 1)
        fallback  after max_rejections rejections propose one more and keep the best of all, untested

    Without fallbacks an accepted segment s follows q(s) min(1, exp((r - tau(t)) / beta)), normalized for each prefix, where q
    is the proposal. Among segments of one length this is q(s) exp(min(r, tau) / beta). `target` is r* and
    `entropy_threshold` is tau_u; None takes the values suggested by the reward model and the LM. `temperature` None means
    beta, as in the paper. `width` affects only the speed. `boundary` replaces the entropy rule.

    With `quantile`, each prompt has its own r*, taken from the first `pilots` candidates of the first segment:

        r* = the ceil(quantile pilots)-th smallest of r(x, s_1) .. r(x, s_pilots),   s_i ~ q

    The pilots are all proposed first and then tested in order. Given r*, the first segment is the first pilot that passes. One
    always does, because no threshold is above r*. With alpha 1 and the hard test, each of the pilots - ceil(quantile pilots) +
    1 pilots of highest reward is equally likely. Later segments follow the law above, given r*. This option is ours.

    With `gain`, the threshold follows the reward that the response y has reached, so each segment must add to it:

        tau = r(x, y) + gain

    A prompt whose responses all have low rewards needs no more candidates than others. `alpha` has no effect. With `quantile`,
    r* is the threshold of the first segment. This option is ours.

    With `ends` "reward", as in the paper, a segment without text that ends the response is tested like any other. An end
    rarely adds to the reward, so such responses grow long with `gain`. With "lm" it is not tested: as the first candidate it
    passes, later it does not. Without fallbacks the response then ends after y with probability q(end), and otherwise the
    next segment follows the law above among the other segments. None is "lm" with `gain`, else "reward". This option is ours.

    If neither `target`, `quantile` nor `gain` is set and the reward suggests no target, CARDS runs with gain 0 and the hard
    test: no segment may lower the reward.

    Differs from the published code: one KV cache and no second pass at a boundary; the end-of-text token ends the response;
    the reward of the prompt is counted; the test runs on the log scale; non-finite rewards are errors.
    """

    name: ClassVar[str] = "cards"
    summary: ClassVar[str] = (
        "Accept or reject segments, which end where the model is uncertain, by their reward against a rising threshold."
    )

    quantile: float | None = setting(
        None,
        help="Quantile of the rewards of a prompt's pilots that becomes its target reward (none: target is used).",
        at_least=0,
        at_most=1,
    )
    gain: float | None = setting(
        None,
        help="Reward that each segment must add to the response so far (none: the rising threshold is used, or, if no target "
        "is known, 0 with the hard test).",
    )
    pilots: int = setting(
        8,
        help="Number of first candidates of the first segment, from which the quantile is taken.",
        at_least=1,
        typical=(1, 32),
        client_at_most=256,
        advanced=True,
    )
    entropy_threshold: float | None = setting(
        None,
        help="Uncertainty tau_u of the next token that ends a segment (none: suggested by the model).",
        at_least=0,
        typical=(0, 10),
    )
    ends: Ends | None = setting(
        None,
        help="What ends a response (reward: an end is tested like a segment; lm: it is as likely as under the model; none: lm "
        "with gain, else reward).",
        advanced=True,
    )
    measure: Measure = setting("entropy", help="Measure of uncertainty of the next token.", advanced=True)
    min_segment: int = setting(4, help="Minimum number of tokens per segment.", at_least=1, typical=(1, 64), advanced=True)
    max_segment: int = setting(64, help="Maximum number of tokens per segment.", at_least=1, typical=(1, 256), advanced=True)
    boundary: Boundary | None = setting(
        None, help="Rule that ends a segment (entropy: by uncertainty, the rule of CARDS).", advanced=True
    )

    def validate(self) -> None:
        check(
            self.quantile is None or self.target is None,
            f"quantile and target both set the target reward r*, got {self.quantile} and {self.target}: set only one.",
        )
        check(
            self.gain is None or self.target is None,
            f"gain replaces the target reward r*, got gain = {self.gain} and target = {self.target}: set only one.",
        )
        check(
            self.quantile is None or self.pilots <= self.max_rejections,
            f"pilots must be between 1 and max_rejections = {self.max_rejections}, got {self.pilots}.",
        )
        check(
            self.measure == "entropy" or self.entropy_threshold is not None or self.boundary is not None,
            f"measure {self.measure!r} has its own scale, between 0 and 1: set entropy_threshold too.",
        )
        self.segment_boundary(3.0)

    def resolved(self, reward: Reward) -> CARDS:
        if self.target is None and self.quantile is None and self.gain is None and reward.target is None:
            return replace(self, gain=0.0, acceptance="hard")
        return self

    @property
    def remedy(self) -> str:
        if self.gain == 0:
            return ""  # nothing is out of reach: where no candidate adds reward, the best one is used
        setting = "gain" if self.gain is not None else "quantile" if self.quantile is not None else None
        found: str = super(SegmentMethod, self).remedy  # slots break super() without arguments
        return found if setting is None else f"Lower {setting}{self.softer}"

    def segment_boundary(self, suggested_threshold: float) -> Boundary:
        threshold = suggested_threshold if self.entropy_threshold is None else self.entropy_threshold
        return self.boundary or Entropy(self.min_segment, self.max_segment, threshold, self.measure)

    async def propose_pilots(
        self, request: Request, ask: Ask, engine: Engine, reward: Reward, pilots: list[Segment]
    ) -> AsyncGenerator[Event, None]:
        if self.quantile is not None:
            pilots_ask = replace(ask, n=self.pilots)
            async with aclosing(propose_responses(request.prompt, pilots_ask, engine, reward, pilots)) as events:
                async for event in events:
                    if isinstance(event, Proposed):  # Scored needs the threshold, which the pilots determine
                        yield event

    def next_schedule(self, schedule: Schedule, reached: float | None) -> Schedule:
        if self.gain is None:
            return schedule
        required_reward = schedule.target if reached is None else reached + self.gain
        return Schedule(required_reward, required_reward, schedule.length)

    @property
    def lm_ends(self) -> bool:
        return self.ends == "lm" if self.ends else self.gain is not None

    def target_reward(self, reward: Reward, pilots: Sequence[Segment]) -> float:
        if self.gain is not None and self.quantile is None:
            return 0.0  # not used
        if self.quantile is None:
            return SegmentMethod.target_reward(self, reward, pilots)
        return quantile_of([cast(float, pilot.reward) for pilot in pilots], self.quantile)

"""CARDS, Cascade Reward Sampling (Li et al., COLM 2025, arXiv 2406.16306)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.acceptance import Acceptance, Schedule, Verdict, quantile_of
from cards.boundaries import Boundary, Entropy, Measure
from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine, check_gamma
from cards.errors import check
from cards.events import Accepted, Event, Fallback, Proposed, Response, Segment
from cards.methods.base import (
    EngineLike,
    Method,
    Rejection,
    Request,
    Sieve,
    Width,
    check_width,
    model_setting,
    required,
    target_of,
)
from cards.methods.responses.driver import draw
from cards.rewards.base import Reward
from cards.sampling import Sampling


@dataclass(frozen=True, slots=True)
class CARDS(Method):
    """Accept segments, cut where the LM is unsure, by a quasi-rejection test against a rising reward threshold.

        r0     = (1 - alpha) r(x) + alpha r*
        tau(t) = min(r*, r0 + t (r* - r0) / n)           t: response tokens with the candidate's, n: max_tokens
        accept   if u < min(1, exp((r(x, y + s) - tau(t)) / beta))
        after max_rejections rejections draw one more and keep the best of all, untested (a fallback)

    Without fallbacks an accepted segment follows q(s) min(1, exp((r - tau(t)) / beta)), normalised for each prefix, with q
    the proposal: among segments of one length, q(s) exp(min(r, tau) / beta). target is r*, entropy_threshold tau_u; None
    takes what the RM and the LM are known to need (tau_u: 3.0 unless known). temperature None means beta, as in the paper.
    `width` candidates are drawn at once, which changes the speed and nothing else. `boundary` replaces the entropy rule.
    With `draft`, a smaller LM, candidates are drawn by exact speculative sampling, gamma drafted tokens a round: the same law.

    With `quantile` r* is the prompt's own, from the first `pilots` candidates of the first segment:

        r* = the ceil(quantile pilots)-th smallest of r(x, s_1) .. r(x, s_pilots),   s_i ~ q

    They are all drawn, then judged in order as the first candidates. Given r*, the first segment is the first pilot that
    passes: with alpha 1 one always does, and with the hard test each of the pilots - ceil(quantile pilots) + 1 of highest
    reward is as likely. Later segments have the law above, given r*. So r* needs no scale of rewards; this option is ours.

    Differs from the published code: one KV cache and no second pass at a boundary, end of text is honoured, the
    reward of the prompt is counted, the test is done on the log scale, non-finite rewards are refused.
    """

    name: ClassVar[str] = "cards"

    target: float | None = None
    quantile: float | None = None
    pilots: int = 8
    beta: float = 0.7
    alpha: float = 0.5
    entropy_threshold: float | None = None
    measure: Measure = "entropy"
    min_segment: int = 4
    max_segment: int = 64
    boundary: Boundary | None = None
    acceptance: Acceptance = "soft"
    max_rejections: int = 20
    temperature: float | None = None
    top_k: int | None = 40
    top_p: float = 1.0
    width: Width = "auto"
    draft: EngineLike | None = model_setting("engine", None)
    gamma: int = 4

    def __post_init__(self) -> None:
        check(0 <= self.alpha <= 1, f"alpha must lie in [0, 1], not {self.alpha}.")
        check(
            self.quantile is None or self.target is None, "quantile finds the target reward r*: set one of the two, not both."
        )
        check(self.quantile is None or 0 <= self.quantile <= 1, f"quantile must lie in [0, 1], not {self.quantile}.")
        check(
            self.quantile is None or 1 <= self.pilots <= self.max_rejections,
            f"pilots must lie in 1 .. max_rejections = {self.max_rejections}, not {self.pilots}.",
        )
        check(self.max_rejections >= 1, f"max_rejections must be at least 1, not {self.max_rejections}.")
        check_width(self.width)
        check_gamma(self.gamma)
        check(
            self.measure == "entropy" or self.entropy_threshold is not None or self.boundary is not None,
            f"measure {self.measure!r} has a scale of its own: set entropy_threshold too (mcp and evidential lie in [0, 1]).",
        )
        self.verdict, self.sampling, self.segments(3.0)  # each checks its own settings

    @property
    def needed(self) -> frozenset[str]:
        return self.needs if self.draft is None else self.needs | {"logits"}

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.beta, self.acceptance)

    def segments(self, known: float) -> Boundary:
        """The boundary rule, given the tau_u that the LM is known to need."""
        threshold = known if self.entropy_threshold is None else self.entropy_threshold
        return self.boundary or Entropy(self.min_segment, self.max_segment, threshold, self.measure)

    @property
    def sieve(self) -> Sieve | None:
        """A test before that of the reward."""
        return None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.beta if self.temperature is None else self.temperature, self.top_k, self.top_p)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        if self.draft is not None:
            engine = SpeculativeEngine(engine, cast(Engine, self.draft), self.gamma)
        response, pilots = Response(), list[Segment]()
        [prompt_reward] = await reward.score(request.prompt, [response])
        boundary = self.segments(engine.entropy_threshold)
        if self.quantile is None:
            target = target_of(self.target, reward)
        else:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling, n=self.pilots)
            async with aclosing(draw(request.prompt, ask, engine, reward, pilots)) as events:
                async for event in events:
                    if isinstance(event, Proposed):  # they are scored once there is a threshold
                        yield event
            target = quantile_of([cast(float, pilot.reward) for pilot in pilots], self.quantile)
        schedule = Schedule.from_prompt(target, self.alpha, prompt_reward, request.max_tokens)
        search = Rejection(self.verdict.passes, schedule.threshold, self.max_rejections, True, self.width, self.sieve)
        position = 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling)
            drawn = pilots if position == 0 else ()
            async with aclosing(search.stream(request, ask, response, position, engine, reward, drawn)) as events:
                async for event in events:
                    if isinstance(event, Accepted | Fallback):
                        response = response + event.segment
                    yield event
            position += 1

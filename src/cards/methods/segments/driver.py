"""Accept or reject one segment after another: the loop shared by CARDS and related methods."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

from cards.acceptance import Acceptance, Schedule, Verdict
from cards.boundaries import Boundary
from cards.engines.base import Ask, Engine
from cards.events import Accepted, Event, Fallback, Prompt, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Request, Truncated, propose, required, target_of
from cards.rewards.base import Reward
from cards.sampling import GUIDE_VERDICT, VERDICT, Sampling, uniforms
from cards.settings import setting

Width = int | Literal["auto"]
Score = tuple[bool, float]  # (True, reward), or (False, the guide's reward) if the guide rejected the candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceMethod(Truncated):
    """Base class of methods that accept a candidate by a test of its reward."""

    family: ClassVar[str] = "segments"
    tests: ClassVar[bool] = True

    target: float | None = setting(None, help="Target reward r* (none: suggested by the reward model).")
    beta: float = setting(0.7, help="Softness of the acceptance test; lower is stricter.", above=0, typical=(0.05, 3))
    acceptance: Acceptance = setting("soft", help="Quasi-rejection test (soft) or the bare threshold (hard).")
    temperature: float | None = setting(
        None, help="Temperature of the proposal; 0 is greedy (none: beta).", at_least=0, typical=(0, 2)
    )
    width: Width = setting(
        "auto",
        help="Number of candidates proposed at a time; affects the speed, never the response.",
        at_least=1,
        choices=("auto", "1", "2", "4", "8", "16"),
        advanced=True,
    )

    @property
    def remedy(self) -> str:
        lower = "Lower target" if self.target is not None else "Set a target below the one that the reward suggests"
        return lower + self.softer

    @property
    def softer(self) -> str:
        """Return the end of `remedy`: a hard test has no beta."""
        return " or raise beta." if self.acceptance == "soft" else "."

    @property
    def verdict(self) -> Verdict:
        """Return the acceptance test."""
        return Verdict(self.beta, self.acceptance)

    @property
    def sampling(self) -> Sampling:
        """Return the sampling parameters of the proposal."""
        return Sampling(self.beta if self.temperature is None else self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True, slots=True)
class GuideFilter:
    """A cheaper test before the reward: the reward scores only candidates that pass it."""

    guide: Reward
    passes: Callable[[float, float], bool]  # (guide's reward, u)
    stream: int = GUIDE_VERDICT  # random stream of u; VERDICT shares u with the test of the reward

    async def score(self, prompt: Prompt, responses: Sequence[Response], reward: Reward, u: Sequence[float]) -> list[Score]:
        """Score responses by the guide, and those that pass its test by the reward."""
        guide_rewards = await self.guide.score(prompt, responses)
        passed = [self.passes(guide_reward, x) for guide_reward, x in zip(guide_rewards, u, strict=True)]
        passing = [response for response, passes in zip(responses, passed, strict=True) if passes]
        rewards = iter(await reward.score(prompt, passing) if passing else ())
        return [
            (passes, next(rewards) if passes else guide_reward)
            for guide_reward, passes in zip(guide_rewards, passed, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class SegmentSampler:
    """Propose candidates for one segment until one passes; after `limit` rejections fall back to the best, untested.

    With `extra`, one more candidate is proposed before the fallback (CARDS: 20 rejections, best of 21). Candidates are
    proposed `width` at a time but tested strictly in order, and none after the first that passes. The outcome therefore has
    the law of one candidate at a time, and the same seed gives the same outcome at every width.

    With `lm_ends`, a candidate without text that ends the response is not tested: the first candidate of a segment passes,
    later ones do not. So the response ends with the probability that the LM gives its end.

    A candidate that the guide rejects gets no reward. The fallback is the candidate with the highest reward, or, if no
    candidate passed the guide, the one with the highest reward of the guide.
    """

    passes: Callable[[float, float, float], bool]  # (reward, threshold, u)
    schedule: Schedule
    limit: int
    extra: bool
    width: Width
    guide_filter: GuideFilter | None = None
    lm_ends: bool = False
    verdicts: Counter[bool] = field(default_factory=Counter)  # True: accepted, False: rejected

    async def stream(
        self,
        request: Request,
        ask: Ask,
        response: Response,
        index: int,
        engine: Engine,
        reward: Reward,
        pilots: Sequence[Segment] = (),
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of segment number `index`; the last one is Accepted or Fallback.

        `pilots` are the first candidates, if they have been proposed and scored already.
        """
        total = self.limit + self.extra
        candidates: list[Segment] = []
        scores: list[Score] = []
        u = uniforms(request.seed, index, 0, total, VERDICT)

        def with_rejected(segment: Segment) -> Segment:
            rejected = tuple(s for s in candidates if s is not segment) if request.trace else ()
            return replace(segment, candidates=len(candidates), rejected=rejected)

        def with_reward(segment: Segment, r: float) -> Segment:
            return replace(
                segment, reward=r, threshold=self.schedule.threshold(len(response.token_ids) + len(segment.token_ids))
            )

        def scored_event(number: int, segment: Segment) -> Scored:
            tested = number < self.limit and segment.threshold is not None
            return Scored(index, number, segment, self.schedule, float(u[number]) if tested else None)

        for number, segment in enumerate(pilots):
            yield scored_event(number, with_reward(segment, cast(float, segment.reward)))
        async with aclosing(self._candidates(request, ask, response, index, engine, reward, pilots)) as proposed:
            async for segment, (scored, r) in proposed:
                number = len(candidates)
                if number >= len(pilots):
                    yield Proposed(index, number, segment)
                only_ends = self.lm_ends and segment.finish_reason == "stop" and not segment.text
                if scored:
                    segment = replace(segment, reward=r) if only_ends else with_reward(segment, r)
                    if number >= len(pilots):
                        yield scored_event(number, segment)
                candidates.append(segment)
                scores.append((False, -math.inf) if only_ends else (scored, r))
                if number >= self.limit:
                    continue
                if only_ends:
                    passed = number == 0
                else:
                    passed = scored and self.passes(r, cast(float, segment.threshold), float(u[number]))
                self.verdicts[passed] += 1
                if passed:
                    yield Accepted(index, number, with_rejected(segment))
                    return
                yield Rejected(index, number, segment)
        best = max(range(total), key=scores.__getitem__)  # the first one in case of ties
        yield Fallback(index, best, replace(with_rejected(candidates[best]), fallback=True))

    async def _candidates(
        self,
        request: Request,
        ask: Ask,
        response: Response,
        index: int,
        engine: Engine,
        reward: Reward,
        pilots: Sequence[Segment],
    ) -> AsyncGenerator[tuple[Segment, Score], None]:
        """Yield all candidates in order, with their scores."""
        for segment in pilots:
            yield segment, (True, cast(float, segment.reward))
        total, count = self.limit + self.extra, len(pilots)
        while count < total:
            rate = (self.verdicts[True] + 1) / (self.verdicts.total() + 2)
            n = engine.width(rate, total - count) if self.width == "auto" else self.width
            ask = replace(ask, segment=index, first=count, n=min(n, total - count))
            async with aclosing(propose(engine, ask)) as batches:
                async for batch in batches:
                    responses = [response + segment for segment in batch]
                    scores = await self._scores(request, responses, reward, index, count)
                    count += len(batch)
                    for candidate in zip(batch, scores, strict=True):
                        yield candidate

    async def _scores(
        self, request: Request, responses: Sequence[Response], reward: Reward, index: int, first: int
    ) -> list[Score]:
        if self.guide_filter is None:
            return [(True, r) for r in await reward.score(request.prompt, responses)]
        u = uniforms(request.seed, index, 0, first + len(responses), self.guide_filter.stream)
        return await self.guide_filter.score(request.prompt, responses, reward, u[first:].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMethod(AcceptanceMethod):
    """Base class of methods that test segments against the rising threshold of CARDS."""

    siblings: ClassVar[bool] = True

    alpha: float = setting(
        0.5, help="Start of the threshold: 0 at the reward of the prompt, 1 at the target.", at_least=0, at_most=1
    )
    max_rejections: int = setting(
        20,
        help="Rejections of a segment before a fallback to the best candidate.",
        at_least=1,
        typical=(1, 64),
        client_at_most=256,
    )

    @abstractmethod
    def segment_boundary(self, suggested_threshold: float) -> Boundary:
        """Return the rule that ends segments, given the entropy threshold tau_u that the LM suggests."""

    @property
    def lm_ends(self) -> bool:
        """Return whether the LM alone decides if the response ends after a segment."""
        return False

    @property
    def guide_filter(self) -> GuideFilter | None:
        """Return the test that precedes the reward, or None."""
        return None

    async def propose_pilots(
        self, request: Request, ask: Ask, engine: Engine, reward: Reward, pilots: list[Segment]
    ) -> AsyncGenerator[Event, None]:
        """Propose the candidates of the first segment that determine the target reward, and append them to `pilots`."""
        for event in list[Event]():
            yield event

    def target_reward(self, reward: Reward, pilots: Sequence[Segment]) -> float:
        """Return the target reward r*. Raises SettingError if none is known."""
        return target_of(self.target, reward)

    def next_schedule(self, schedule: Schedule, reached: float | None) -> Schedule:
        """Return the schedule of the threshold of the next segment; `reached` is the reward so far."""
        return schedule

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        response, pilots = Response(), list[Segment]()
        [prompt_reward] = await reward.score(request.prompt, [response])
        boundary = self.segment_boundary(engine.entropy_threshold)
        ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling)
        async with aclosing(self.propose_pilots(request, ask, engine, reward, pilots)) as events:
            async for event in events:
                yield event
        target = self.target_reward(reward, pilots)
        schedule = Schedule.from_prompt(target, self.alpha, prompt_reward, request.max_tokens)
        sampler = SegmentSampler(
            self.verdict.passes, schedule, self.max_rejections, True, self.width, self.guide_filter, self.lm_ends
        )
        index, reached = 0, None if pilots else prompt_reward
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling)
            first = pilots if index == 0 else ()
            sampler = replace(sampler, schedule=self.next_schedule(schedule, reached))
            async with aclosing(sampler.stream(request, ask, response, index, engine, reward, first)) as events:
                async for event in events:
                    if isinstance(event, Accepted | Fallback):
                        response, reached = response + event.segment, event.segment.reward
                    yield event
            index += 1

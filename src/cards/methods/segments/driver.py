"""Accept or reject one segment after another: the loop that CARDS and its relatives share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

from cards.acceptance import Acceptance, Schedule, Verdict
from cards.boundaries import Boundary
from cards.engines.base import Ask, Engine
from cards.events import Accepted, Event, Fallback, Prompt, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Request, Truncated, propose, required, target_of
from cards.rewards.base import Reward
from cards.sampling import GUIDE_VERDICT, VERDICT, Sampling, uniforms
from cards.settings import setting
from cards.usage import current_account

Width = int | Literal["auto"]
Score = tuple[bool, float]  # whether the reward was asked, and its score, else a cheaper one


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepting(Truncated):
    """Base of methods that accept a candidate by a test of its reward."""

    family: ClassVar[str] = "segments"

    target: float | None = setting(None, help="Target reward r* (none: suggested by the reward model).")
    beta: float = setting(0.7, help="Softness of the acceptance test; lower is stricter.", above=0, typical=(0.05, 3))
    acceptance: Acceptance = setting("soft", help="Quasi-rejection test (soft) or the bare threshold (hard).")
    temperature: float | None = setting(
        None, help="Temperature of the proposal; 0 is greedy (none: beta).", at_least=0, typical=(0, 2)
    )
    width: Width = setting(
        "auto",
        help="Candidates drawn at once; changes the speed, never the text.",
        at_least=1,
        choices=("auto", "1", "2", "4", "8", "16"),
        advanced=True,
    )

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.beta, self.acceptance)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.beta if self.temperature is None else self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True, slots=True)
class Sieve:
    """A cheaper test before the reward: only what passes it is scored by the reward."""

    guide: Reward
    passes: Callable[[float, float], bool]  # (guide's reward, u)
    stream: int = GUIDE_VERDICT  # of u; VERDICT makes it the number that the reward's test compares too

    async def score(self, prompt: Prompt, responses: Sequence[Response], reward: Reward, u: Sequence[float]) -> list[Score]:
        guides = await self.guide.score(prompt, responses)
        passed = [self.passes(guide, x) for guide, x in zip(guides, u, strict=True)]
        asked = [response for response, good in zip(responses, passed, strict=True) if good]
        rewards = iter(await reward.score(prompt, asked) if asked else ())
        return [(good, next(rewards) if good else guide) for guide, good in zip(guides, passed, strict=True)]


@dataclass(frozen=True, slots=True)
class Rejection:
    """Draw candidates for one segment until one passes; after `limit` rejections take the best seen, untested.

    With `extra`, one more candidate is drawn before that choice (CARDS: 20 rejections, best of 21). Candidates
    are drawn `width` at a time, yet judged strictly in order and no later than the first that passes, so the outcome
    has the law of drawing them one by one, and the same seed gives the same outcome at every width.

    What a sieve holds back is rejected without a reward; the best seen is then one that the reward has scored, if there is
    any, else the one the sieve's guide likes best.
    """

    passes: Callable[[float, float, float], bool]  # (reward, threshold, u)
    threshold: Callable[[int], float]  # of the number of response tokens, the candidate's included
    limit: int
    extra: bool
    width: Width
    sieve: Sieve | None = None

    async def stream(
        self,
        request: Request,
        ask: Ask,
        response: Response,
        position: int,
        engine: Engine,
        reward: Reward,
        drawn: Sequence[Segment] = (),
    ) -> AsyncGenerator[Event, None]:
        """Yield the events of one segment; the last one is Accepted or Fallback.

        `drawn` are the first candidates, where those have been proposed and scored already.
        """
        total = self.limit + self.extra
        seen: list[Segment] = []
        ranks: list[Score] = []
        u = uniforms(request.seed, position, 0, total, VERDICT)

        def taken(segment: Segment) -> Segment:
            rejected = tuple(s for s in seen if s is not segment) if request.trace else ()
            return replace(segment, candidates=len(seen), rejected=rejected)

        def held(segment: Segment, r: float) -> Segment:
            return replace(segment, reward=r, threshold=self.threshold(len(response.token_ids) + len(segment.token_ids)))

        for number, segment in enumerate(drawn):
            yield Scored(position, number, held(segment, cast(float, segment.reward)))
        async with aclosing(self._candidates(request, ask, response, position, engine, reward, drawn)) as candidates:
            async for segment, (scored, r) in candidates:
                number = len(seen)
                if number >= len(drawn):
                    yield Proposed(position, number, segment)
                if scored:
                    segment = held(segment, r)
                    if number >= len(drawn):
                        yield Scored(position, number, segment)
                seen.append(segment)
                ranks.append((scored, r))
                if number >= self.limit:
                    continue
                if scored and self.passes(r, cast(float, segment.threshold), float(u[number])):
                    yield Accepted(position, number, taken(segment))
                    return
                yield Rejected(position, number, segment)
        best = max(range(total), key=ranks.__getitem__)  # the first of equals
        yield Fallback(position, best, replace(taken(seen[best]), fallback=True))

    async def _candidates(
        self,
        request: Request,
        ask: Ask,
        response: Response,
        position: int,
        engine: Engine,
        reward: Reward,
        drawn: Sequence[Segment],
    ) -> AsyncGenerator[tuple[Segment, Score], None]:
        """All candidates in order, with their scores."""
        for segment in drawn:
            yield segment, (True, cast(float, segment.reward))
        total, count = self.limit + self.extra, len(drawn)
        while count < total:
            usage = current_account().usage
            rate = (usage.accepted + 1) / (usage.accepted + usage.rejected + 2)
            n = engine.width(rate, total - count) if self.width == "auto" else self.width
            ask = replace(ask, segment=position, first=count, n=min(n, total - count))
            async with aclosing(propose(engine, ask)) as batches:
                async for batch in batches:
                    responses = [response + segment for segment in batch]
                    scores = await self._scores(request, responses, reward, position, count)
                    count += len(batch)
                    for candidate in zip(batch, scores, strict=True):
                        yield candidate

    async def _scores(
        self, request: Request, responses: Sequence[Response], reward: Reward, position: int, first: int
    ) -> list[Score]:
        if self.sieve is None:
            return [(True, r) for r in await reward.score(request.prompt, responses)]
        u = uniforms(request.seed, position, 0, first + len(responses), self.sieve.stream)
        return await self.sieve.score(request.prompt, responses, reward, u[first:].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rising(Accepting):
    """Base of methods that hold segments against the rising threshold of CARDS; `segments` says where they end."""

    siblings: ClassVar[bool] = True

    alpha: float = setting(
        0.5, help="Start of the threshold: 0 at the reward of the prompt, 1 at the target.", at_least=0, at_most=1
    )
    max_rejections: int = setting(
        20, help="Rejections of a segment before a fallback to the best candidate.", at_least=1, typical=(1, 64)
    )

    @abstractmethod
    def segments(self, known: float) -> Boundary:
        """The boundary, given the entropy threshold tau_u that suits the LM."""

    @property
    def sieve(self) -> Sieve | None:
        """A test before that of the reward."""
        return None

    async def draw_pilots(
        self, request: Request, ask: Ask, engine: Engine, reward: Reward, drawn: list[Segment]
    ) -> AsyncGenerator[Event, None]:
        """Draw candidates of the first segment that are needed to know the target."""
        for event in list[Event]():
            yield event

    def aim(self, reward: Reward, drawn: Sequence[Segment]) -> float:
        """The target reward r*. Raises SettingError if none is known."""
        return target_of(self.target, reward)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        response, drawn = Response(), list[Segment]()
        [prompt_reward] = await reward.score(request.prompt, [response])
        boundary = self.segments(engine.entropy_threshold)
        ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling)
        async with aclosing(self.draw_pilots(request, ask, engine, reward, drawn)) as events:
            async for event in events:
                yield event
        schedule = Schedule.from_prompt(self.aim(reward, drawn), self.alpha, prompt_reward, request.max_tokens)
        search = Rejection(self.verdict.passes, schedule.threshold, self.max_rejections, True, self.width, self.sieve)
        position = 0
        while response.finish_reason is None:
            ask = replace(request.ask(response), boundary=boundary, sampling=self.sampling)
            first = drawn if position == 0 else ()
            async with aclosing(search.stream(request, ask, response, position, engine, reward, first)) as events:
                async for event in events:
                    if isinstance(event, Accepted | Fallback):
                        response = response + event.segment
                    yield event
            position += 1

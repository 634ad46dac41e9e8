"""The Method contract, and the accept/reject loop that CARDS and its relatives share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, cast

from cards.engines.base import Ask, Engine
from cards.errors import MismatchError, SettingError, check
from cards.events import Accepted, Event, Fallback, Prompt, Proposed, Rejected, Response, Scored, Segment
from cards.rewards.base import Reward
from cards.sampling import EARLY, VERDICT, Sampling, uniforms
from cards.usage import count_round, current_account

Width = int | Literal["auto"]
Score = tuple[bool, float]  # whether the reward was asked, and its score, else a cheaper one


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what its user wants of the answer."""

    prompt: Prompt
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    trace: bool = False  # keep rejected candidates in the result
    room: int | None = None  # tokens that the answer may have by the models' contexts

    def ask(self, response: Response) -> Ask:
        most = self.max_tokens if self.room is None else min(self.max_tokens, self.room)
        return Ask(self.prompt, response, most - len(response.token_ids), seed=self.seed, stop=self.stop)


EngineLike = str | Engine
RewardLike = str | Reward


def model_setting(kind: Literal["engine", "engines", "reward"], default: Any) -> Any:
    """A field of a method that holds a model (for `engines`: a tuple of them) or its name, which Decoder loads."""
    return field(default=default, metadata={"loads": kind})


class Method(ABC):
    """A decoding-time algorithm: a frozen dataclass of settings whose `stream` yields what happens.

    `needs` names what it asks of the engine (`segments`, `logits`, `logprobs`) and `reward` if it needs one.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "reward"})

    @property
    def needed(self) -> frozenset[str]:
        """`needs`, with what these settings need besides."""
        return self.needs

    @property
    def models(self) -> list[Engine | Reward]:
        """The models that its settings hold, once they are loaded."""
        held: list[str] = [item.name for item in fields(self) if "loads" in item.metadata] if is_dataclass(self) else []
        values: list[Any] = [getattr(self, name) for name in held]
        found = [model for value in values for model in (value if isinstance(value, tuple) else (value,))]
        return [model for model in found if isinstance(model, Engine | Reward)]

    @property
    def kl_bound(self) -> float | None:
        """KL(answers || proposal) is at most this, in nats, where a bound is known."""
        return None

    @abstractmethod
    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        """Yield events up to and including the segment whose finish_reason is set; Decoder adds Done."""


def setting_fields(method: Method | type[Method]) -> tuple[Field[Any], ...]:
    """The settings of a method, as dataclass fields."""
    return fields(method)  # type: ignore[arg-type]  # every method is a dataclass, though their base is none


class Sampled(Method):
    """Base of methods that draw under temperature, top_k and top_p, which are settings of theirs."""

    temperature: float
    top_k: int | None
    top_p: float

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def required(reward: Reward | None, method: Method) -> Reward:
    """The reward, or MismatchError if there is none."""
    if reward is None:
        raise MismatchError(f"Method {method.name!r} needs a reward model; `cards methods` lists what each one needs.")
    return reward


def target_of(target: float | None, reward: Reward) -> float:
    """The target reward r*: the method's, else the one the reward suggests, else SettingError."""
    target = target if target is not None else reward.target
    if target is None:
        raise SettingError(
            f"No target reward r* is known for {reward.name!r}: set target. Rewards have no common scale (published "
            "values run from -0.5 to 10); take a high quantile of the rewards of the model's own answers."
        )
    return target


@dataclass(frozen=True, slots=True)
class Sieve:
    """A cheaper test before the reward: only what passes it is scored by the reward."""

    guide: Reward
    passes: Callable[[float, float], bool]  # (guide's reward, u)
    stream: int = EARLY  # of u; VERDICT makes it the number that the reward's test compares too

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

    def __post_init__(self) -> None:
        check(self.limit >= 0, f"max_rejections must not be negative, got {self.limit}.")
        check_width(self.width)

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


def propose(engine: Engine, ask: Ask) -> AsyncGenerator[list[Segment], None]:
    """Ask the engine for candidates, in lists as they get ready. Counts a round."""
    count_round()
    return engine.propose(ask)


async def proposals(engine: Engine, *asks: Ask) -> list[list[Segment]]:
    """All candidates of each ask, drawn side by side in one round."""
    if asks:
        count_round()
    return await asyncio.gather(*(draw_all(engine, ask) for ask in asks))


async def draw_all(engine: Engine, ask: Ask) -> list[Segment]:
    """All segments of an ask. Used directly, to look ahead, it does not count a round."""
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


def argmax(segments: Sequence[Segment]) -> int:
    """The number of the scored segment with the highest reward, the first of equals."""
    return max(range(len(segments)), key=lambda i: cast(float, segments[i].reward))


def check_width(width: Width) -> None:
    check(width == "auto" or (isinstance(width, int) and width >= 1), f"width must be 'auto' or at least 1, not {width!r}.")

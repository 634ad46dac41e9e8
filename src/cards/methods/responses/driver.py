"""Sample complete responses, score them and choose one: the part shared by best-of-n and related methods."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.engines.base import Ask, Engine
from cards.errors import check
from cards.events import Accepted, Event, Fallback, Prompt, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Method, Request, Sampled, propose, required
from cards.methods.responses.nested import Drawing, Drawn
from cards.rewards.base import Reward
from cards.settings import setting, settings_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMethod(Sampled):
    """Base class of methods that draw n complete responses, score them if needed, and `choose` one of them.

    The responses are sampled from q or drawn by the inner method. Their inner seeds are independent.
    """

    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True

    n: int = setting(8, help="Number of responses to sample.", at_least=1, typical=(1, 32), client_at_most=64)

    inner: Method | None = setting(None, help="Method that draws each response (none: plain sampling).")

    def __post_init__(self) -> None:
        super(ResponseMethod, self).__post_init__()
        for name in settings_of(Sampled) if self.inner is not None else ():
            check(
                getattr(self, name) == settings_of(self)[name].default,
                f"{name} is not used with an inner method, which draws the responses: set {name} of the inner method instead.",
            )

    @property
    def scores(self) -> bool:
        """Return whether the choice needs rewards."""
        return "reward" in self.needs

    @property
    def needed(self) -> frozenset[str]:
        return self.needs | ({"reward"} if self.scores else frozenset()) | (self.inner.needed if self.inner else frozenset())

    @property
    def kl_bound(self) -> float | None:
        return choice_kl_bound(self.n) if self.inner is None else None

    def scorer(self, engine: Engine, reward: Reward | None) -> Reward | None:
        """Return the reward that scores the responses, or None if the choice needs none."""
        return required(reward, self) if self.scores else None

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int | None:
        """Return the index of the response to return. Each candidate is a complete response.

        None returns one more sample instead, as a fallback.
        """
        raise NotImplementedError(f"Define choose, or select, in {type(self).__name__}.")

    async def select(self, candidates: Sequence[Segment], request: Request, engine: Engine) -> int | None:
        """Return the index as `choose` does. Override it instead of `choose` if the choice asks the LM about the responses."""
        return await self.choose(candidates, request.seed)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        scorer = self.scorer(engine, reward)
        if self.inner is not None:
            drawing = Drawing(self.inner, request, engine, reward, scorer, self.n + 1)
            async with aclosing(self._choose_among(drawing)) as events:
                async for event in events:
                    yield event
            return
        candidates: list[Segment] = []
        ask = replace(request.ask(Response()), sampling=self.sampling, n=self.n)
        async with aclosing(propose_responses(request.prompt, ask, engine, scorer, candidates)) as events:
            async for event in events:
                yield event
        chosen = await self.select(candidates, request, engine)
        if chosen is None:
            fresh = replace(ask, first=self.n, n=1)
            async with aclosing(propose_responses(request.prompt, fresh, engine, scorer, candidates)) as events:
                async for event in events:
                    yield event
        for event in verdicts(candidates, self.n if chosen is None else chosen, request.trace, fallback=chosen is None):
            yield event

    async def _choose_among(self, drawing: Drawing) -> AsyncGenerator[Event, None]:
        """Choose among responses of the inner method. The segments of the chosen one are those that it accepted."""
        drawn: list[Drawn] = []
        async with aclosing(drawing.draw(range(self.n), drawn)) as events:
            async for event in events:
                yield event
        chosen = await self.select([one.candidate for one in drawn], drawing.request, drawing.engine)
        if chosen is None:
            async with aclosing(drawing.draw([self.n], drawn)) as events:
                async for event in events:
                    yield event
        best = drawn.pop(self.n if chosen is None else chosen)
        for event in (rejection for one in drawn for rejection in one.rejections()):
            yield event
        for event in best.kept:
            untested = Fallback(event.position, event.candidate, replace(event.segment, threshold=None, fallback=True))
            yield untested if chosen is None else event


def choice_kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n (arXiv 2401.01879), which bounds every choice among n samples, not only best-of-n.

    For P(response in A) <= 1 - (1 - q(A))^n for every set A, with equality for best-of-n and the sets of highest reward.
    """
    return math.log(n) - (n - 1) / n


async def propose_responses(
    prompt: Prompt, ask: Ask, engine: Engine, reward: Reward | None, candidates: list[Segment]
) -> AsyncGenerator[Event, None]:
    """Propose responses, score them as responses to `prompt`, append them to `candidates`, and yield the events.

    A candidate includes the text that the ask continues. The prompt of the ask may differ from `prompt`. If the reward reads
    with the engine, scoring begins after the last candidate: the others would keep the cache slots that it waits for.
    """
    shared = reward is not None and reads(reward, engine)
    async with aclosing(propose(engine, ask)) as batches:
        async for batch in joined(batches) if shared else batches:
            responses = [ask.response + segment for segment in batch]
            rewards = [None] * len(batch) if reward is None else await reward.score(prompt, responses)
            for segment, response, r in zip(batch, responses, rewards, strict=True):
                number = len(candidates)
                candidates.append(replace(segment, text=response.text, token_ids=response.token_ids, reward=r))
                yield Proposed(0, number, replace(candidates[number], reward=None))
                if reward is not None:
                    yield Scored(0, number, candidates[number])


def reads(reward: Reward, engine: Engine) -> bool:
    """Return whether the reward, or a part of it, reads with this engine."""
    return any(part is engine or (isinstance(part, Reward) and reads(part, engine)) for part in reward.parts)


async def joined(batches: AsyncGenerator[list[Segment], None]) -> AsyncGenerator[list[Segment], None]:
    """Yield all candidates in one list."""
    yield [segment async for batch in batches for segment in batch]


def verdicts(candidates: Sequence[Segment], chosen: int, trace: bool, *, fallback: bool = False) -> Iterator[Event]:
    """Yield the verdicts: the chosen candidate is accepted, or used as a fallback, and the others are rejected."""
    others = [(i, candidate) for i, candidate in enumerate(candidates) if i != chosen]
    for i, candidate in others:
        yield Rejected(0, i, candidate)
    rejected = tuple(candidate for _, candidate in others) if trace else ()
    verdict = Fallback if fallback else Accepted
    yield verdict(0, chosen, replace(candidates[chosen], candidates=len(candidates), rejected=rejected, fallback=fallback))


def rewards_of(candidates: Sequence[Segment]) -> list[float]:
    """Return the rewards of scored candidates."""
    return [cast(float, candidate.reward) for candidate in candidates]

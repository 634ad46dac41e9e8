"""Whole answers: draw them, score them, take one. What best-of-n and its relatives share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from cards.engines.base import Ask, Engine
from cards.events import Accepted, Event, Prompt, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Request, Sampled, propose, required
from cards.rewards.base import Reward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers(Sampled):
    """Draw n whole answers from q at once, score them if the method needs that, and take the one that `choose` says."""

    family: ClassVar[str] = "responses"

    n: int = setting(8, help="Number of responses to draw.", at_least=1, typical=(1, 32), client_at_most=64)

    @property
    def kl_bound(self) -> float:
        """log n - (n - 1) / n (arXiv 2401.01879): best-of-n is, of all choices among n draws, the one that may change most.

        For P(the answer taken lies in A) <= 1 - (1 - q(A))^n, with equality for the answers of highest reward.
        """
        return math.log(self.n) - (self.n - 1) / self.n

    @abstractmethod
    async def choose(self, answers: Sequence[Segment], seed: int) -> int:
        """The number of the answer to take."""

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self) if "reward" in self.needed else None
        answers: list[Segment] = []
        ask = replace(request.ask(Response()), sampling=self.sampling, n=self.n)
        async with aclosing(draw(request.prompt, ask, engine, reward, answers)) as events:
            async for event in events:
                yield event
        for event in taken(answers, await self.choose(answers, request.seed), request.trace):
            yield event


async def draw(
    prompt: Prompt, ask: Ask, engine: Engine, reward: Reward | None, answers: list[Segment]
) -> AsyncGenerator[Event, None]:
    """Draw what is asked for; with what it continues, it is scored as answers to `prompt` and added to `answers`."""
    async with aclosing(propose(engine, ask)) as batches:
        async for batch in batches:
            whole = [ask.response + segment for segment in batch]
            rewards = [None] * len(batch) if reward is None else await reward.score(prompt, whole)
            for segment, response, r in zip(batch, whole, rewards, strict=True):
                number = len(answers)
                answers.append(replace(segment, text=response.text, token_ids=response.token_ids, reward=r))
                yield Proposed(0, number, replace(answers[number], reward=None))
                if reward is not None:
                    yield Scored(0, number, answers[number])


def taken(answers: Sequence[Segment], chosen: int, trace: bool) -> Iterator[Event]:
    """The verdicts: one answer is accepted, the others are rejected."""
    others = [(i, answer) for i, answer in enumerate(answers) if i != chosen]
    for i, answer in others:
        yield Rejected(0, i, answer)
    rejected = tuple(answer for _, answer in others) if trace else ()
    yield Accepted(0, chosen, replace(answers[chosen], candidates=len(answers), rejected=rejected))


def rewards_of(answers: Sequence[Segment]) -> list[float]:
    """The rewards of scored answers."""
    return [cast(float, answer.reward) for answer in answers]

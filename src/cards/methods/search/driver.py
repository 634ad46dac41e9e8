"""Search over incomplete answers: particles grow block by block, are scored, and the fitter ones grow on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import ClassVar

from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Request, Sampled, proposals
from cards.rewards.base import Reward
from cards.sampling import Sampling

Key = tuple[int, int]  # of a candidate: its block, and its number there
Block = tuple[Boundary, int]  # where its candidates end, and how many of them continue each particle


class SearchMethod(Sampled):
    """Base of methods that search over incomplete responses."""

    family: ClassVar[str] = "search"


@dataclass(frozen=True, slots=True)
class Particle:
    """An answer so far, the candidates it is made of, and its score by `judge`."""

    response: Response = field(default_factory=Response)
    path: tuple[Key, ...] = ()
    score: float = 0.0
    judge: Reward | None = None

    @property
    def finished(self) -> bool:
        return self.response.finish_reason is not None


def best(scores: Sequence[float]) -> int:
    """The number of the highest score, the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def top(scores: Sequence[float], n: int) -> list[int]:
    """The numbers of the n highest scores, in rising order; of equals the first."""
    return sorted(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:n])


@dataclass(frozen=True, slots=True)
class Search:
    """Grow the empty answer by one block of `plan` after another into a population of particles, until all are finished.

    In a round every unfinished particle is continued by candidates of its own, drawn at once and scored in one call;
    finished ones stay as they are. `keep` takes the scores of all to the numbers of those that live on (one named twice
    lives on as two), `choose` the scores of the last ones, all finished, to the number of the answer. A `guide` scores
    in place of the reward until all are finished. A segment is released once all living particles share it.
    """

    plan: Iterable[Block]
    keep: Callable[[Sequence[float]], Sequence[int]]
    sampling: Sampling
    choose: Callable[[Sequence[float]], int] = best
    guide: Reward | None = None

    async def stream(self, request: Request, engine: Engine, reward: Reward) -> AsyncGenerator[Event, None]:
        particles, candidates = [Particle()], Candidates(request.trace)
        for position, (boundary, n) in enumerate(self.plan):
            growing = [p.response for p in particles if not p.finished]
            asks = [
                replace(request.ask(r), boundary=boundary, sampling=self.sampling, segment=position, first=i * n, n=n)
                for i, r in enumerate(growing)
            ]
            drawn = iter(await proposals(engine, *asks))
            numbers, grown = count(), list[Particle]()
            for particle in particles:
                if particle.finished:
                    grown.append(particle)
                    continue
                for segment in next(drawn):
                    key = position, next(numbers)
                    yield candidates.add(key, segment)
                    grown.append(Particle(particle.response + segment, (*particle.path, key)))
            done = all(p.finished for p in grown)
            judge = reward if done or self.guide is None else self.guide
            unscored = [i for i, p in enumerate(grown) if p.judge is not judge]
            if unscored:
                scores = await judge.score(request.prompt, [grown[i].response for i in unscored])
                for i, score in zip(unscored, scores, strict=True):
                    grown[i] = replace(grown[i], score=score, judge=judge)
                    yield candidates.score(grown[i].path[-1], score)
            scores = [p.score for p in grown]
            particles = [grown[i] for i in ([self.choose(scores)] if done else self.keep(scores))]
            for event in candidates.settle([p.path for p in particles], done):
                yield event
            if done:
                return


@dataclass(slots=True)
class Candidates:
    """All candidates of a search, and those without a verdict yet; each gets one, as soon as it is certain."""

    trace: bool
    seen: dict[Key, Segment] = field(default_factory=dict)
    undecided: list[Key] = field(default_factory=list)

    def add(self, key: Key, segment: Segment) -> Event:
        self.seen[key] = segment
        self.undecided.append(key)
        return Proposed(*key, segment)

    def score(self, key: Key, score: float) -> Event:
        self.seen[key] = replace(self.seen[key], reward=score)
        return Scored(*key, self.seen[key])

    def settle(self, paths: Sequence[tuple[Key, ...]], done: bool) -> Iterator[Event]:
        """Reject what is on no path any more, then accept what begins them all; an end only when all is done."""
        living = {key for path in paths for key in path}
        shared: list[Key] = [keys[0] for keys in takewhile(lambda keys: len(set(keys)) == 1, zip(*paths, strict=False))]
        certain = [key for key in shared if key in self.undecided and (done or self.seen[key].finish_reason is None)]
        for key in self.undecided:
            if key not in living:
                yield Rejected(*key, self.seen[key])
        for key in certain:
            yield Accepted(*key, self.taken(key))
        self.undecided = [key for key in self.undecided if key in living and key not in certain]

    def taken(self, key: Key) -> Segment:
        """The segment with the others of its block, and with those of later blocks if it ends the answer."""
        segment, block = self.seen[key], key[0]
        last = block if segment.finish_reason is None else max(self.seen)[0]
        others = tuple(s for k, s in self.seen.items() if block <= k[0] <= last and k != key)
        return replace(segment, candidates=1 + len(others), rejected=others if self.trace else ())

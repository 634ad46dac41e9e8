"""Search over incomplete responses: particles grow by segments, are scored, and the best ones grow on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import ClassVar

from cards.boundaries import Boundary
from cards.engines.base import Engine
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import Request, Sampled, propose_all
from cards.rewards.base import Reward
from cards.sampling import Sampling

Key = tuple[int, int]  # (segment number, candidate number)
Stage = tuple[Boundary, int]  # boundary of the candidates, and their number for each particle


class SearchMethod(Sampled):
    """Base class of methods that search over incomplete responses."""

    family: ClassVar[str] = "search"


@dataclass(frozen=True, slots=True)
class Particle:
    """An incomplete response, the keys of its candidates, its score, the reward that gave the score, and its tree."""

    response: Response = field(default_factory=Response)
    path: tuple[Key, ...] = ()
    score: float = 0.0
    scorer: Reward | None = None
    tree: int = 0

    @property
    def finished(self) -> bool:
        return self.response.finish_reason is not None


def best(scores: Sequence[float]) -> int:
    """Return the index of the highest score (the first one in case of ties)."""
    return max(range(len(scores)), key=scores.__getitem__)


def top(scores: Sequence[float], n: int) -> list[int]:
    """Return the indices of the n highest scores in ascending order (the first ones in case of ties)."""
    return sorted(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:n])


@dataclass(frozen=True, slots=True)
class Search:
    """Grow the empty response into a population of particles, by one segment per stage of `plan`, until all are finished.

    In each round every unfinished particle is continued by its candidates, which are proposed together and scored in one
    call. Finished particles stay as they are. `keep` maps all scores to the indices of the particles that survive; an index
    that occurs twice makes two particles. `choose` maps the final scores to the index of the response. A `guide` replaces the
    reward until all particles are finished. A segment is emitted once all surviving particles share it. With several `trees`,
    each has its own empty response, and `keep` is applied to each of them separately.
    """

    plan: Iterable[Stage]
    keep: Callable[[Sequence[float]], Sequence[int]]
    sampling: Sampling
    choose: Callable[[Sequence[float]], int] = best
    guide: Reward | None = None
    trees: int = 1

    async def stream(self, request: Request, engine: Engine, reward: Reward) -> AsyncGenerator[Event, None]:
        """Yield the events of the search."""
        particles, candidates = [Particle(tree=tree) for tree in range(self.trees)], Candidates(request.trace)
        for index, (boundary, n) in enumerate(self.plan):
            growing = [p.response for p in particles if not p.finished]
            asks = [
                replace(request.ask(r), boundary=boundary, sampling=self.sampling, segment=index, first=i * n, n=n)
                for i, r in enumerate(growing)
            ]
            continuations = iter(await propose_all(engine, *asks))
            numbers, grown = count(), list[Particle]()
            for particle in particles:
                if particle.finished:
                    grown.append(particle)
                    continue
                for segment in next(continuations):
                    key = index, next(numbers)
                    yield candidates.add(key, segment, particle.path)
                    grown.append(Particle(particle.response + segment, (*particle.path, key), tree=particle.tree))
            done = all(p.finished for p in grown)
            scorer = reward if done or self.guide is None else self.guide
            unscored = [i for i, p in enumerate(grown) if p.scorer is not scorer]
            if unscored:
                scores = await scorer.score(request.prompt, [grown[i].response for i in unscored])
                for i, score in zip(unscored, scores, strict=True):
                    grown[i] = replace(grown[i], score=score, scorer=scorer)
                    yield candidates.score(grown[i].path[-1], score)
            particles = [grown[self.choose([p.score for p in grown])]] if done else self._kept(grown)
            for event in candidates.settle([p.path for p in particles], done):
                yield event
            if done:
                return

    def _kept(self, particles: Sequence[Particle]) -> list[Particle]:
        trees = ([p for p in particles if p.tree == tree] for tree in range(self.trees))
        return [tree[i] for tree in trees for i in self.keep([p.score for p in tree])]


@dataclass(slots=True)
class Candidates:
    """All candidates of a search, and the keys of those without a verdict. Each gets one as soon as it is certain."""

    trace: bool
    segments: dict[Key, Segment] = field(default_factory=dict)
    undecided: list[Key] = field(default_factory=list)

    def add(self, key: Key, segment: Segment, path: Sequence[Key]) -> Event:
        """Add a candidate that continues the last one of `path`, and return its event."""
        self.segments[key] = segment
        self.undecided.append(key)
        return Proposed(*key, segment, parent=path[-1] if path else None)

    def score(self, key: Key, score: float) -> Event:
        """Set the reward of a candidate, and return its event."""
        self.segments[key] = replace(self.segments[key], reward=score)
        return Scored(*key, self.segments[key])

    def settle(self, paths: Sequence[tuple[Key, ...]], done: bool) -> Iterator[Event]:
        """Reject dead candidates, then accept the prefix shared by all surviving paths.

        A segment that ends the response is accepted only when the search is `done`.
        """
        living = {key for path in paths for key in path}
        shared: list[Key] = [keys[0] for keys in takewhile(lambda keys: len(set(keys)) == 1, zip(*paths, strict=False))]
        certain = [key for key in shared if key in self.undecided and (done or self.segments[key].finish_reason is None)]
        for key in self.undecided:
            if key not in living:
                yield Rejected(*key, self.segments[key])
        for key in certain:
            yield Accepted(*key, self.with_rejected(key))
        self.undecided = [key for key in self.undecided if key in living and key not in certain]

    def with_rejected(self, key: Key) -> Segment:
        """Return the segment with its rejected candidates, and those of all later segments if it ends the response."""
        segment, index = self.segments[key], key[0]
        last = index if segment.finish_reason is None else max(self.segments)[0]
        others = tuple(s for k, s in self.segments.items() if index <= k[0] <= last and k != key)
        return replace(segment, candidates=1 + len(others), rejected=others if self.trace else ())

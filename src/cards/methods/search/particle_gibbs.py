"""Particle Gibbs with a process reward model (Puri et al., NeurIPS 2025, arXiv 2502.01618)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, Literal

from cards.boundaries import Boundary, Step
from cards.engines.base import Engine
from cards.events import Event
from cards.methods.base import Request, RewardLike, loaded, propose_all, required
from cards.methods.search.driver import Candidates, Particle, SearchMethod, best
from cards.rewards.base import Reward
from cards.rewards.scale import Scale, log_odds, to_probability
from cards.sampling import RESAMPLING, pick, uniforms
from cards.settings import setting

BLANK_LINE = Step()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParticles(SearchMethod):
    """Base class of particle filters over reasoning steps, weighted by a process reward."""

    particles: int = setting(
        8, help="Number of responses generated concurrently.", at_least=1, typical=(1, 32), client_at_most=64
    )
    process: RewardLike | None = setting(None, help="Reward model that scores steps (none: the reward).", loads="reward")
    weights: Literal["odds", "probability"] = setting(
        "odds", help="Weight of a response: the odds or the probability of its reward.", advanced=True
    )
    take: Literal["best", "sample"] = setting(
        "best", help="Whether to return the response of highest weight or one drawn by weight.", advanced=True
    )
    boundary: Boundary = setting(BLANK_LINE, help="Rule that ends a step.", advanced=True)
    temperature: float = 0.8
    top_k: int | None = None

    @property
    def filters(self) -> int:
        """Return the number of particle filters."""
        return 1

    def weigh(self, rewards: Sequence[float], scale: Scale) -> list[float]:
        """Return the weights of particles, up to a factor."""
        import numpy as np

        if self.weights == "probability":
            return [to_probability(r, scale) for r in rewards]
        odds = np.array([log_odds(r, scale) for r in rewards])
        return np.exp(odds - odds.max()).tolist()  # type: ignore[no-any-return]

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        process = required(reward if self.process is None else loaded(self.process), self)
        candidates, reference = Candidates(request.trace), Particle()
        draws = count()  # numbers of the resamplings
        for iteration in range(self.filters):
            particles = [Particle()] * self.particles
            pinned = iteration > 0
            for index in count():
                growing = [i for i, p in enumerate(particles) if not p.finished and not (pinned and i == 0)]
                asks = [
                    replace(
                        request.ask(particles[i].response),
                        boundary=self.boundary,
                        sampling=self.sampling,
                        segment=index,
                        first=iteration * self.particles + i,
                    )
                    for i in growing
                ]
                for i, [segment] in zip(growing, await propose_all(engine, *asks), strict=True):
                    key = index, iteration * self.particles + i
                    yield candidates.add(key, segment, particles[i].path)
                    particles[i] = Particle(particles[i].response + segment, (*particles[i].path, key))
                if pinned:
                    particles[0] = self.beginning(reference, index + 1, candidates)
                unscored = [i for i, p in enumerate(particles) if p.scorer is None]
                scores = await process.score(request.prompt, [particles[i].response for i in unscored]) if unscored else []
                for i, score in zip(unscored, scores, strict=True):
                    particles[i] = replace(particles[i], score=score, scorer=process)
                    yield candidates.score(particles[i].path[-1], score)
                w = np.array(self.weigh([p.score for p in particles], process.scale))
                w = w if w.any() else np.ones_like(w)
                u = uniforms(request.seed, next(draws), 0, self.particles, RESAMPLING)
                if all(p.finished for p in particles):
                    break
                chosen = sorted(pick(w, float(x)) for x in u[pinned:])
                particles = [*particles[:pinned], *(particles[i] for i in chosen)]
                if iteration == self.filters - 1:
                    living = [reference.path] if pinned else []
                    for event in candidates.settle([*living, *(p.path for p in particles[pinned:])], done=False):
                        yield event
            reference = particles[pick(w, float(u[0]))]
        response = reference if self.take == "sample" else particles[best(w.tolist())]
        for event in candidates.settle([response.path], done=True):
            yield event

    @staticmethod
    def beginning(reference: Particle, steps: int, candidates: Candidates) -> Particle:
        """Return the first steps of the reference, with their score."""
        particle = Particle(path=reference.path[:steps])
        for key in particle.path:
            segment = candidates.segments[key]
            particle = replace(particle, response=particle.response + segment, score=segment.reward or 0.0)
        return replace(particle, scorer=reference.scorer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticleGibbs(StepParticles):
    """Run particle filters one after another, each with a response of the one before as its reference.

        in each of `iterations`:
            start N = `particles` empty responses; from the second iteration on, the first is the reference
            repeat until all are finished:
                continue each unfinished one by a step ~ q, and the reference by its own next step
                w_i = odds or probability of r(x, y_i)
                draw N responses by w, N - 1 besides the reference, with replacement
            reference = one of the N responses, drawn by w

    The response is the one of highest w in the last iteration, or its reference (`take`). Weights are not accumulated: each
    resampling uses the reward of the response so far. If all responses have the same number of steps, the chain of references
    leaves the law q(y) prod_k w(y_1..k) invariant, at any N >= 2. A finished response keeps its last weight.

    `process` scores steps; without it the reward does. Probabilities are used as they are; other rewards are log-odds. The
    theorem of the paper uses probabilities, and the published code odds.
    """

    name: ClassVar[str] = "particle-gibbs"
    summary: ClassVar[str] = "Run particle filters over reasoning steps, each around a response of the one before."

    iterations: int = setting(2, help="Number of particle filters.", at_least=1, typical=(1, 8), client_at_most=16)

    @property
    def filters(self) -> int:
        return self.iterations

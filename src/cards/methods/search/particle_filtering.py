"""Particle filtering with a process reward model (Puri et al., NeurIPS 2025, arXiv 2502.01618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.methods.search.particle_gibbs import StepParticles


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticleFiltering(StepParticles):
    """Continue N responses step by step, and draw N of them by their process reward after each step.

        start N = `particles` empty responses; repeat until all are finished:
            continue each unfinished one by a step ~ q
            w_i = odds or probability of r(x, y_i)
            draw N responses by w, with replacement
        response: the one of highest w, or one drawn by w (`take`)

    This is particle Gibbs with one iteration. Weights are not accumulated: each resampling uses the reward of the response so
    far. With many particles that all have the same number of steps, they follow q(y) prod_k w(y_1..k) before the last choice. A
    finished response keeps its last weight.

    `process` scores steps; without it the reward does. Probabilities are used as they are; other rewards are log-odds. The
    theorem of the paper uses probabilities, and the published code odds.
    """

    name: ClassVar[str] = "particle-filtering"
    summary: ClassVar[str] = "Draw among incomplete responses by their process reward after each step."

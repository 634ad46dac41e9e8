"""Soft best-of-N sampling (Verdun et al., arXiv 2505.03156)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.sampling import VERDICT, pick, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftBestOfN(ResponseMethod):
    """Return one of y_1 .. y_n ~ q with probability exp(r_i / beta) / sum_j exp(r_j / beta).

    For large n the law approaches q(y) exp(r(x, y) / beta), normalized (self-normalized importance resampling). n = 1 is plain
    sampling, and beta near 0 is best-of-n. beta is the paper's temperature lambda.
    """

    name: ClassVar[str] = "soft-best-of-n"
    summary: ClassVar[str] = "Return one of n responses, with probability proportional to exp(reward / beta)."

    beta: float = setting(0.7, help="Softness of the choice; lower prefers high rewards more.", above=0, typical=(0.05, 3))

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        import numpy as np

        rewards = np.array(rewards_of(candidates))
        [u] = uniforms(seed, 0, 0, 1, VERDICT)
        return pick(np.exp((rewards - rewards.max()) / self.beta), float(u))

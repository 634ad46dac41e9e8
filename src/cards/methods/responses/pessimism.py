"""Inference-time pessimism (Huang et al., arXiv 2503.21878)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod, choice_kl_bound, rewards_of
from cards.sampling import VERDICT, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Pessimism(ResponseMethod):
    """Choose one of n responses by a test that trusts high rewards only as far as the LM covers them.

        lambda:  mean_i relu((r_i - lambda) / beta) = 1      over y_1 .. y_n ~ q
        w_i = relu((r_i - lambda) / beta),   M = (highest - lambda) / beta
        accept response i, in order, with probability min(w_i / M, 1); if none passes, return one more, untested

    For large n the law is q(y) relu((r - lambda) / beta), which maximizes the reward under a chi-squared penalty of weight
    beta. `highest` bounds the reward (R_max in the paper). None takes the highest of the n rewards, so that one always passes.
    """

    name: ClassVar[str] = "pessimism"
    summary: ClassVar[str] = "Return one of n responses, trusting high rewards only as far as the model covers them."

    beta: float = setting(0.7, help="Weight of the penalty; lower trusts the reward more.", above=0, typical=(0.05, 3))
    highest: float | None = setting(
        None, help="Upper bound of the reward (none: the highest of the n responses).", advanced=True
    )

    @property
    def kl_bound(self) -> float | None:
        return choice_kl_bound(self.n + (self.highest is not None)) if self.inner is None else None

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int | None:
        rewards = rewards_of(candidates)
        n = len(rewards)
        sums = accumulate(sorted(rewards, reverse=True))  # lambda is the maximum over k of the solution for the k highest alone
        lambda_ = max((total - n * self.beta) / k for k, total in enumerate(sums, 1))
        bound = max(0.0, (max(rewards) if self.highest is None else self.highest) - lambda_)
        passed = (i for i, u in enumerate(uniforms(seed, 0, 0, n, VERDICT)) if u * bound < max(0.0, rewards[i] - lambda_))
        return next(passed, None)

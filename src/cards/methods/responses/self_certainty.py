"""Best-of-n and voting by self-certainty (Kang et al., arXiv 2502.18581)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.engines.base import Engine
from cards.events import Segment
from cards.methods.base import argmax
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.methods.responses.self_consistency import answer_pattern, check_pattern, final_answer, leading_answer
from cards.rewards.base import Reward
from cards.rewards.confidence import ConfidenceReward
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCertainty(ResponseMethod):
    """Choose among n responses by the certainty of the LM itself, without a reward.

        c(y) = mean over the tokens t of KL(uniform || p_t)      p_t: the LM's next-token law at temperature 1
        power None:  argmax of c(y_i)
        otherwise:   Borda vote: argmax_a of the sum of (n - rank_i + 1)^power over the responses with final answer a

    rank 1 is the most certain response. power 0 is the majority vote of self-consistency, and a large power approaches the most
    certain response. Among the responses with the winning answer, the most certain one is returned. The rewards of segments are
    c. `pattern` is that of self-consistency. Responses without a final answer have no vote; if none has one, the most certain
    response is returned.
    """

    name: ClassVar[str] = "self-certainty"
    summary: ClassVar[str] = "Return the response out of n that the model is most certain of, or vote by certainty."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    power: float | None = setting(
        None, help="Exponent of the Borda vote on final answers (none: the most certain response).", at_least=0, typical=(0, 3)
    )
    pattern: str | None = answer_pattern()

    def validate(self) -> None:
        check_pattern(self.pattern)

    def scorer(self, engine: Engine, reward: Reward | None) -> Reward:
        return ConfidenceReward(engine)

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        finals = [final_answer(candidate.text, self.pattern) for candidate in candidates]
        if self.power is None or not any(final is not None for final in finals):
            return argmax(candidates)
        certainty = rewards_of(candidates)
        ranked = sorted(range(len(candidates)), key=lambda i: -certainty[i])
        votes = [0.0] * len(candidates)
        for place, i in enumerate(ranked):
            votes[i] = (len(candidates) - place) ** self.power
        winner = leading_answer(finals, votes)
        return next(i for i in ranked if finals[i] == winner)

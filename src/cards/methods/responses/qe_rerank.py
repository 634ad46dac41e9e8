"""Quality-aware reranking (Fernandes et al., arXiv 2205.00978)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.errors import check
from cards.events import Segment
from cards.methods.responses.driver import Answers, rewards_of
from cards.methods.responses.similarity import Similarity, Utility, agreement, check_utility
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class QERerank(Answers):
    """Keep the answers of highest estimated quality, r(x, y_i), and take the one of them most like the others kept.

    keep = 1 is reranking by quality estimate alone (best-of-n), keep = n is mbr. Equals go to the higher reward, then to
    the first, so keep = 2 with a symmetric utility is keep = 1.
    """

    name: ClassVar[str] = "qe-rerank"
    summary: ClassVar[str] = "Return the response that is most similar to the others among those with the highest rewards."

    keep: int = setting(4, help="Responses of highest reward among which agreement decides.", at_least=1, typical=(1, 32))
    utility: Similarity | Utility = setting("chrf", help="Measure of the agreement of two responses.", advanced=True)

    def validate(self) -> None:
        check(self.keep <= self.n, f"keep must be between 1 and n = {self.n}, got {self.keep}.")
        check_utility(self.utility)

    async def choose(self, answers: Sequence[Segment], seed: int) -> int:
        rewards = rewards_of(answers)
        kept = sorted(range(len(answers)), key=lambda i: -rewards[i])[: self.keep]
        means = await asyncio.to_thread(agreement, [answers[i].text for i in kept], self.utility)
        return kept[means.index(max(means))]

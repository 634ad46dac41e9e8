"""Quality-aware reranking (Fernandes et al., arXiv 2205.00978)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.errors import check
from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.methods.responses.similarity import Similarity, Utility, agreement, check_utility
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class QERerank(ResponseMethod):
    """Keep the responses with the highest quality estimates r(x, y_i), and return the one most similar to the others kept.

        y_1 .. y_n ~ q;  keep the `keep` responses of highest r(x, y_i)
        response = argmax over them of mean_{j != i} u(y_i, y_j)

    keep = 1 is best-of-n and keep = n is mbr. Ties go to the higher reward, then to the first, so keep = 2 with a symmetric
    utility equals keep = 1.
    """

    name: ClassVar[str] = "qe-rerank"
    summary: ClassVar[str] = "Return the response that is most similar to the others among those with the highest rewards."

    keep: int = setting(4, help="Number of responses of highest reward to compare.", at_least=1, typical=(1, 32))
    utility: Similarity | Utility = setting("chrf", help="Measure of the similarity of two responses.", advanced=True)

    def validate(self) -> None:
        check(self.keep <= self.n, f"keep must be between 1 and n = {self.n}, got {self.keep}.")
        check_utility(self.utility)

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        rewards = rewards_of(candidates)
        kept = sorted(range(len(candidates)), key=lambda i: -rewards[i])[: self.keep]
        means = await agreement([candidates[i].text for i in kept], self.utility)
        return kept[means.index(max(means))]

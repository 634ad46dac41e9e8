"""Minimum-Bayes-risk decoding (Kumar and Byrne 2004; sampled as in Eikema and Aziz, arXiv 2108.04718)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod
from cards.methods.responses.similarity import Similarity, Utility, agreement, check_utility
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MBR(ResponseMethod):
    """Return the response most similar to the others: argmax_i of mean_{j != i} u(y_i, y_j), y_1 .. y_n ~ q.

    The responses are references for each other, each as often as it was sampled. The first one wins ties. `utility` is
    u(response, reference): chrf, rouge-l, jaccard (of words), exact, or a function.
    """

    name: ClassVar[str] = "mbr"
    summary: ClassVar[str] = "Return the response out of n that is most similar to the others (minimum Bayes risk)."
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})

    utility: Similarity | Utility = setting("chrf", help="Measure of the similarity of two responses.", advanced=True)

    def validate(self) -> None:
        check_utility(self.utility)

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        means = await agreement([candidate.text for candidate in candidates], self.utility)
        return means.index(max(means))

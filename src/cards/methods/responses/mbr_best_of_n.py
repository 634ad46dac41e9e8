"""Best-of-N regularised by minimum Bayes risk (Jinnai et al., arXiv 2404.01054)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.events import Segment
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.methods.responses.similarity import Similarity, Utility, agreement, check_utility
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MBRBestOfN(ResponseMethod):
    """Return the argmax_i of r(x, y_i) + beta mean_{j != i} u(y_i, y_j): a high reward, but similar to other responses.

    beta 0 is best-of-n, and a very large beta is mbr. The paper's utility is the cosine of sentence embeddings, which a
    function (response, reference) can compute. The built-in utilities are chrf, rouge-l, jaccard and exact.
    """

    name: ClassVar[str] = "mbr-best-of-n"
    summary: ClassVar[str] = "Return the response out of n with the highest sum of reward and similarity to the others."

    beta: float = setting(1.0, help="Weight of the similarity, added to the reward.", at_least=0, typical=(0, 3))
    utility: Similarity | Utility = setting("chrf", help="Measure of the similarity of two responses.", advanced=True)

    def validate(self) -> None:
        check_utility(self.utility)

    async def choose(self, candidates: Sequence[Segment], seed: int) -> int:
        means = await agreement([candidate.text for candidate in candidates], self.utility)
        values = [r + self.beta * mean for r, mean in zip(rewards_of(candidates), means, strict=True)]
        return values.index(max(values))

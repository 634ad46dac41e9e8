"""SafeDecoding (Xu et al., ACL 2024, arXiv 2402.08983)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cards.engines.base import Engine
from cards.engines.mixture import Source
from cards.methods.base import EngineLike, loaded
from cards.methods.tokens.driver import LogitsMethod
from cards.sampling import Sampling, distribution
from cards.settings import setting

if TYPE_CHECKING:
    from cards.methods.tokens.driver import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeDecoding(LogitsMethod):
    """Follow an expert, an LM that was tuned to refuse harmful requests, for the first tokens, which decide about refusal.

        V   = top k of p  and  top k of p_expert, with the smallest k for which both share `common` tokens
        y_t ~ max(0, p(v) + weight (p_expert(v) - p(v))), normalised over V      for the first `first` tokens
        y_t ~ p                                                                 after them

    p are next-token probabilities at temperature 1. temperature then applies to the mixture; 0 takes the likeliest token.
    first, weight and common are m, alpha and c in the paper. If no token of V has a positive weight, p_expert on V is used.
    """

    name: ClassVar[str] = "safe-decoding"
    summary: ClassVar[str] = "Follow a model that was tuned to refuse harmful requests for the first tokens."

    temperature: float = 0.0
    top_k: int | None = None
    expert: EngineLike = setting("tiny-aligned", help="Tuned LM with the same tokenizer.", loads="engine")
    weight: float = setting(3.0, help="Weight of the expert; 1 is the expert alone.", at_least=0, typical=(0, 5))
    first: int = setting(2, help="Number of tokens that follow the expert.", at_least=0, typical=(0, 16))
    common: int = setting(
        5, help="Number of likely tokens of both LMs to choose from.", at_least=1, typical=(1, 40), advanced=True
    )

    def sources(self, engine: Engine) -> Sequence[Source]:
        return [Source(loaded(self.expert))]

    def mixes(self, position: int) -> bool:
        return position < self.first

    def combine(self, position: int, logits: Floats, *others: Floats) -> Floats:
        import numpy as np

        [of_expert] = others
        p, expert = distribution(logits, Sampling(), position), distribution(of_expert, Sampling(), position)
        expert = np.where(logits > -np.inf, expert, 0)  # without tokens that the LM or a grammar excludes
        expert = expert / expert.sum() if expert.any() else p
        later = np.maximum(_ranks(p), _ranks(expert))  # the k from which both lists have the token
        shared = later <= np.sort(later)[min(self.common, len(later)) - 1]
        mixed = np.where(shared, (p + self.weight * (expert - p)).clip(0), 0)
        if not mixed.any():
            mixed = np.where(shared, expert if expert[shared].any() else p, 0)
        with np.errstate(divide="ignore"):
            return np.log(mixed)


def _ranks(p: Floats) -> Floats:
    """Return the position of each token [vocabulary] in the order of falling probability."""
    return (-p).argsort(kind="stable").argsort().astype(float)

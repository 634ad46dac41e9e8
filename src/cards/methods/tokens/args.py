"""ARGS, Alignment as Reward-Guided Search (Khanov et al., ICLR 2024, arXiv 2402.01694)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.methods.tokens.driver import Guided


@dataclass(frozen=True, slots=True, kw_only=True)
class ARGS(Guided):
    """The likeliest tokens compete by logit and reward.

        score(v) = logit(v) + weight r(x, y + v)     v among the top_k likeliest
        y_t      = argmax score, or ~ softmax(score / temperature)

    weight is the paper's w. temperature 0 is ARGS-greedy, 0.7 the published ARGS-stochastic.

    Differs from the published code: LM and RM keep what they have read, so that a step reads one token in the LM and
    top_k in the RM; the RM sees texts in its own tokens and template; the answer ends with the end-of-text token.
    """

    name: ClassVar[str] = "args"
    summary: ClassVar[str] = "Choose each token by the sum of its logit and the reward."

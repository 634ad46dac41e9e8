"""ARGS, Alignment as Reward-Guided Search (Khanov et al., ICLR 2024, arXiv 2402.01694)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cards.methods.tokens.driver import RewardGuidedMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class ARGS(RewardGuidedMethod):
    """Choose each token among the most likely ones by logit and reward.

        score(v) = logit(v) + weight r(x, y + v)     v: the top_k most likely tokens
        y_t      = argmax score(v), or ~ softmax(score / temperature)

    weight is w in the paper. temperature 0 is ARGS-greedy, 0.7 is the published ARGS-stochastic.

    Differs from the published code: the LM and the reward model cache the tokens they have read, so a step reads one token in
    the LM and top_k in the reward model. The reward model reads its own tokens and template. The response ends with the
    end-of-text token.
    """

    name: ClassVar[str] = "args"
    summary: ClassVar[str] = "Choose each token by the sum of its logit and the reward."

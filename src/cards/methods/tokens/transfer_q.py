"""Transfer Q* (Chakraborty et al., NeurIPS 2024, arXiv 2405.20495)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.engines.base import Engine
from cards.errors import PromptTooLongError
from cards.events import Response
from cards.methods.base import EngineLike, Request, loaded
from cards.methods.tokens.deal import DeAL
from cards.methods.tokens.driver import limit_to_context
from cards.rewards.base import Reward
from cards.settings import setting
from cards.usage import booked_as


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferQ(DeAL):
    """Choose each token by its probability and by the reward of its completion by an aligned LM.

        Q(v) = r(x, y + v + greedy completion by `aligned`, at most lookahead tokens)     v: the top_k most likely tokens
        y_t ~ softmax((logit(v) + weight Q(v)) / temperature)                             temperature 0: the highest score

    The aligned LM stands for the optimal policy of its own reward, so its completions show the value of a token better than
    those of the LM. weight is 1 / alpha in the paper. If `aligned` is the LM itself, this is DeAL.

    This is the direct transfer of the paper. Its indirect transfer, which weighs completions for another reward than that of
    the aligned LM, is not implemented.
    """

    name: ClassVar[str] = "transfer-q"
    summary: ClassVar[str] = "Choose each token by its probability and the reward of its completion by an aligned model."

    top_k: int = 10
    aligned: EngineLike = setting("tiny-aligned", help="Aligned LM with the same tokenizer, which completes.", loads="engine")
    lookahead: int = setting(
        32, help="Maximum number of tokens of a completion.", at_least=0, typical=(0, 64), client_at_most=128
    )

    async def rewards(
        self, request: Request, engine: Engine, reward: Reward, response: Response, continuations: Sequence[Response]
    ) -> Sequence[float]:
        aligned = loaded(self.aligned)
        try:
            request = limit_to_context(request, [aligned])
        except PromptTooLongError:  # nothing can be completed
            request = replace(request, max_tokens=1)
        with booked_as("draft"):
            completed = await self.completions(request, aligned, continuations)
        return await reward.score(request.prompt, completed)

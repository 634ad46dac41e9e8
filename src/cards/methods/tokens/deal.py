"""DeAL, Decoding-time Alignment (Huang et al., ACL 2025, arXiv 2402.06147)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Response
from cards.methods.base import Request, draw_all
from cards.methods.tokens.driver import Guided
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DeAL(Guided):
    """The likeliest tokens compete by their probability and by the reward of what greedy decoding makes of them.

        y_t = argmax log P(v | x, y) + weight h(x, y + v + greedy(lookahead tokens))     v among the top_k likeliest

    weight is the paper's lambda, h its heuristic: here the reward. A logit is log P up to a constant, so with lookahead 0
    this is ARGS-greedy.

    Differs from the paper: one hypothesis is kept, so the probability of what came before cancels;
    a lookahead ends with the answer, by end of text, stop string or max_tokens; its tokens are drawn side by side.
    """

    name: ClassVar[str] = "deal"
    summary: ClassVar[str] = "Choose each token by its log-probability and the reward of its greedy continuation."
    needs: ClassVar[frozenset[str]] = Guided.needs | {"segments"}

    weight: float = 1.0
    top_k: int = 5
    lookahead: int = setting(
        8, help="Tokens decoded greedily behind each token before it is scored.", at_least=0, typical=(0, 32), client_at_most=64
    )

    async def rewards(
        self, request: Request, engine: Engine, reward: Reward, response: Response, followers: Sequence[Response]
    ) -> Sequence[float]:
        ahead = await asyncio.gather(*(self._ahead(request, engine, follower) for follower in followers))
        return await reward.score(request.prompt, ahead)

    async def _ahead(self, request: Request, engine: Engine, response: Response) -> Response:
        """The response with what greedy decoding adds to it."""
        count = min(self.lookahead, request.max_tokens - len(response.token_ids))
        if count < 1 or response.finish_reason is not None:
            return response
        ask = replace(request.ask(response), boundary=FixedLength(maximum=count), sampling=Sampling(temperature=0.0))
        [segment] = await draw_all(engine, ask)
        return response + segment

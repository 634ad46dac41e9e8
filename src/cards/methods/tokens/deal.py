"""DeAL, Decoding-time Alignment (Huang et al., ACL 2025, arXiv 2402.06147)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.events import Response
from cards.methods.base import Request, collect_segments
from cards.methods.tokens.driver import RewardGuidedMethod
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DeAL(RewardGuidedMethod):
    """Choose each token by its probability and by the reward of its greedy continuation.

        y_t = argmax of log P(v | x, y) + weight h(x, y + v + greedy(lookahead tokens))     v: the top_k most likely tokens

    weight is lambda in the paper, and h is its heuristic, here the reward. A logit is log P up to a constant, so lookahead 0
    is ARGS-greedy.

    Differs from the paper: one hypothesis is kept, so the probability of the response so far cancels. A lookahead ends with
    the response, at the end of text, a stop string or max_tokens. Lookaheads run concurrently.
    """

    name: ClassVar[str] = "deal"
    summary: ClassVar[str] = "Choose each token by its log-probability and the reward of its greedy continuation."
    needs: ClassVar[frozenset[str]] = RewardGuidedMethod.needs | {"segments"}

    weight: float = setting(
        1.0, help="Weight of the reward, added to the log-probability of a token.", at_least=0, typical=(0, 20)
    )
    top_k: int = 5
    lookahead: int = setting(
        8,
        help="Number of tokens decoded greedily after a token before it is scored.",
        at_least=0,
        typical=(0, 32),
        client_at_most=64,
    )

    async def rewards(
        self, request: Request, engine: Engine, reward: Reward, response: Response, continuations: Sequence[Response]
    ) -> Sequence[float]:
        return await reward.score(request.prompt, await self.completions(request, engine, continuations))

    async def completions(self, request: Request, engine: Engine, responses: Sequence[Response]) -> list[Response]:
        """Return the responses with their greedy continuations by an engine."""
        return await asyncio.gather(*(self._look_ahead(request, engine, response) for response in responses))

    async def _look_ahead(self, request: Request, engine: Engine, response: Response) -> Response:
        """Return the response with its greedy continuation."""
        count = min(self.lookahead, request.max_tokens - len(response.token_ids))
        if count < 1 or response.finish_reason is not None:
            return response
        ask = replace(request.ask(response), boundary=FixedLength(maximum=count), sampling=Sampling(temperature=0.0))
        [segment] = await collect_segments(engine, ask)
        return response + segment

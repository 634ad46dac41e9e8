"""RBoN-KL, best-of-n regularised by the likelihood (Jinnai et al., arXiv 2404.01054)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from cards.engines.base import Engine
from cards.events import Response, Segment
from cards.methods.base import Request
from cards.methods.responses.driver import ResponseMethod, rewards_of
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class RBoNKL(ResponseMethod):
    """Return the argmax_i of r(x, y_i) + beta log pi(y_i | x): a high reward, but not an unlikely response.

    pi is the LM at temperature 1 without truncation, and y_1 .. y_n ~ q. -log pi(y | x) is the KL divergence from pi of the
    law that always returns y. beta 0 is best-of-n, and a very large beta returns the likeliest response. The log-probability
    of a response falls with its length, so a large beta prefers short ones.
    """

    name: ClassVar[str] = "rbon-kl"
    summary: ClassVar[str] = "Return the response out of n with the highest sum of reward and log-probability."
    needs: ClassVar[frozenset[str]] = ResponseMethod.needs | {"logprobs"}

    beta: float = setting(0.01, help="Weight of the log-probability, added to the reward.", at_least=0, typical=(0, 1))

    async def select(self, candidates: Sequence[Segment], request: Request, engine: Engine) -> int:
        responses = [Response(token_ids=candidate.token_ids) for candidate in candidates]
        found = await asyncio.gather(*(engine.logprobs(request.prompt, response) for response in responses))
        scores = [r + self.beta * float(log.sum()) for r, log in zip(rewards_of(candidates), found, strict=True)]
        return scores.index(max(scores))

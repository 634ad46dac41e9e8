"""Power sampling: Metropolis-Hastings towards a power of the LM's distribution (Karan and Du, arXiv 2510.14901)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Engine
from cards.engines.reading import TOKENS
from cards.events import Event, Response, Segment
from cards.methods.base import Method, Request
from cards.methods.responses.driver import propose_responses, verdicts
from cards.methods.responses.qalign import prefix_of
from cards.methods.tokens.driver import proposal_logits
from cards.rewards.base import Reward
from cards.sampling import VERDICT, Sampling, uniforms
from cards.settings import setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSampling(Method):
    """Sample from p(y)^alpha, normalised, by Markov chains over beginnings of the response that grow block by block.

        B = ceil(max_tokens / blocks);  for k = 1 .. blocks:
            extend the state y to k B tokens by q
            repeat `steps` times:
                c uniform on 0 .. |y| - 1,   y' = y[:c] + tail of at most k B - c tokens ~ q
                move to y' with probability min(1, (p(y') / p(y))^alpha (q(y | c) / q(y' | c)) |y| / |y'|)

    p is the LM at temperature 1 over the whole vocabulary, as the request shapes it; there is no reward. q is the LM at
    `temperature` (None: 1 / alpha, as in the paper). The chain of block k leaves p(y)^alpha over texts of at most k B tokens
    invariant, so the response approaches p(y)^alpha as the steps of the last block grow. A low temperature does not: it
    sharpens each token without regard to the likelihood of the rest.

    The factor |y| / |y'| corrects for the choice of c among responses of different lengths. All blocks run, although the
    published code returns a response that ends in an earlier one. After a stop string the kept tokens count.
    """

    name: ClassVar[str] = "power-sampling"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Run Markov chains of responses that converge to a power of the model's distribution."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits"})

    alpha: float = setting(4.0, help="Power; 1 is plain sampling, higher is sharper.", above=0, typical=(1, 8))
    blocks: int = setting(16, help="Number of blocks that max_tokens is divided into.", at_least=1, typical=(1, 32))
    steps: int = setting(
        10, help="Number of steps of the chain after each block.", at_least=0, typical=(0, 32), client_at_most=64
    )
    temperature: float | None = setting(
        None, help="Temperature of the proposal (none: 1 / alpha).", above=0, typical=(0.1, 2), advanced=True
    )

    @property
    def sampling(self) -> Sampling:
        """Return the sampling parameters of the proposal."""
        return Sampling(1 / self.alpha if self.temperature is None else self.temperature)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        import numpy as np

        limit = request.ask(Response()).max_tokens
        block = -(-limit // self.blocks)
        candidates: list[Segment] = []
        state, log_p, log_q = Segment("", ()), np.zeros(0), np.zeros(0)  # log-probabilities of the tokens of the state
        chosen = 0
        for end in (*range(block, limit, block), limit):
            for step in range(self.steps + 1):
                count = len(state.token_ids)
                point, u = map(float, uniforms(request.seed, len(candidates), 0, 2, VERDICT))
                if step == 0 and state.finish_reason is not None:
                    continue
                cut = int(point * count) if step else count
                prefix = prefix_of(state, cut, request, engine) if cut else Response()
                boundary = FixedLength(maximum=end - cut)
                ask = replace(request.ask(prefix), boundary=boundary, sampling=self.sampling, segment=len(candidates))
                async with aclosing(propose_responses(request.prompt, ask, engine, None, candidates)) as events:
                    async for event in events:
                        yield event
                new = candidates[-1]
                p, q = await self.log_probabilities(request, engine, new, cut)
                if step == 0 or self.moves(state, new, log_p[cut:], log_q[cut:], p, q, cut, u):
                    state, chosen = new, len(candidates) - 1
                    log_p, log_q = np.concatenate([log_p[:cut], p]), np.concatenate([log_q[:cut], q])
        for event in verdicts(candidates, chosen, request.trace):
            yield event

    async def log_probabilities(
        self, request: Request, engine: Engine, candidate: Segment, start: int
    ) -> tuple[Floats, Floats]:
        """Return the log-probabilities of the tokens from number `start` on under p and q, each [tokens]."""
        import numpy as np

        def of_tokens(logits: Floats, tokens: tuple[int, ...]) -> Floats:
            return np.asarray(logits[np.arange(len(tokens)), tokens] - np.logaddexp.reduce(logits, axis=1))

        p, q, ids = np.zeros(0), np.zeros(0), candidate.token_ids
        for first in range(start, len(ids), TOKENS):
            tokens = ids[first : first + TOKENS]
            read = Response(token_ids=(*ids[:first], *tokens[:-1]))
            rows = await proposal_logits(engine, request, read, len(tokens))
            p = np.concatenate([p, of_tokens(rows, tokens)])
            q = np.concatenate([q, of_tokens(rows / self.sampling.temperature, tokens)])
        return p, q

    def moves(
        self, old: Segment, new: Segment, old_p: Floats, old_q: Floats, new_p: Floats, new_q: Floats, cut: int, u: float
    ) -> bool:
        """Return whether the chain moves from `old` to `new`, given the log-probabilities of their tokens after the cut."""
        before, after = len(old.token_ids), len(new.token_ids)
        if after == cut > 0:  # a stop string begins before the cut, so q samples this response with fewer tokens
            return False
        ratio = self.alpha * (new_p.sum() - old_p.sum()) + old_q.sum() - new_q.sum()
        ratio += math.log(max(1, before) / max(1, after))
        return bool(u == 0 or math.log(u) < ratio)

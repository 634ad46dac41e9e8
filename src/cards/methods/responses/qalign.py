"""QAlign: Metropolis-Hastings over responses (Faria et al., arXiv 2504.03790 and 2406.00049)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

from cards.acceptance import Verdict
from cards.engines.base import Engine
from cards.events import Event, Response, Segment
from cards.methods.base import Request, Sampled, argmax, required
from cards.methods.responses.driver import propose_responses, verdicts
from cards.rewards.base import Reward
from cards.sampling import VERDICT, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class QAlign(Sampled):
    """Run a Markov chain over complete responses that converges to q(y) exp(r(x, y) / beta), normalized.

        y_0 ~ q;  repeat `steps` times:
            c uniform on 0 .. |y| - 1,   y' = y[:c] + tail,   tail ~ q(. | x, y[:c])
            move to y' with probability min(1, exp((r(x, y') - r(x, y)) / beta) |y| / |y'|)

    |y| counts the tokens, including the one that ends the response. The factor |y| / |y'| corrects for the choice of c and
    makes the chain reversible. q is the LM under temperature, top_k and top_p, truncated at max_tokens. `take` returns the
    last state, a sample from that law, or the best response seen. The paper also votes over the states; we do not.
    """

    name: ClassVar[str] = "qalign"
    family: ClassVar[str] = "responses"
    whole: ClassVar[bool] = True
    summary: ClassVar[str] = "Run a Markov chain of responses that converges to the reward-tilted distribution."

    steps: int = setting(16, help="Number of steps of the chain.", at_least=0, typical=(0, 64), client_at_most=256)
    beta: float = setting(0.7, help="Softness of the acceptance test; lower is stricter.", above=0, typical=(0.05, 3))
    take: Literal["last", "best"] = setting(
        "last", help="Whether to return the last state of the chain or the best one.", advanced=True
    )

    @property
    def verdict(self) -> Verdict:
        """Return the acceptance test."""
        return Verdict(self.beta)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        candidates: list[Segment] = []
        state, prefix = 0, Response()
        for step in range(self.steps + 1):
            point, u = map(float, uniforms(request.seed, step, 0, 2, VERDICT))
            if step:
                cut = int(point * len(candidates[state].token_ids))
                prefix = prefix_of(candidates[state], cut, request, engine)
            ask = replace(request.ask(prefix), sampling=self.sampling, segment=step)
            async with aclosing(propose_responses(request.prompt, ask, engine, reward, candidates)) as events:
                async for event in events:
                    yield event
            if step and self.moves(candidates[state], candidates[step], len(prefix.token_ids), u):
                state = step
        chosen = argmax(candidates) if self.take == "best" else state
        for event in verdicts(candidates, chosen, request.trace):
            yield event

    def moves(self, old: Segment, new: Segment, cut: int, u: float) -> bool:
        """Return whether the chain moves from `old` to `new`, which keeps the first `cut` tokens."""
        before, after = len(old.token_ids), len(new.token_ids)
        if after == cut > 0:  # a stop string begins before the cut, so q samples this response with fewer tokens
            return False
        correction = self.beta * math.log(max(1, before) / max(1, after))
        return self.verdict.passes(cast(float, new.reward) + correction, cast(float, old.reward), u)


def prefix_of(candidate: Segment, count: int, request: Request, engine: Engine) -> Response:
    """Return the first `count` tokens of a candidate, fewer than all, as a response to continue."""
    writer = engine.writer(request.ask(Response()))
    for token in candidate.token_ids[:count]:
        writer.push(token)
    writer.end()
    assert writer.segment is not None
    return Response() + writer.segment

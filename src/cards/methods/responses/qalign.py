"""QAlign: Metropolis-Hastings over answers (Faria et al., arXiv 2504.03790 and 2406.00049)."""

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
from cards.methods.responses.driver import draw, taken
from cards.rewards.base import Reward
from cards.sampling import VERDICT, uniforms
from cards.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class QAlign(Sampled):
    """A Markov chain of whole answers whose law is q(y) exp(r(x, y) / beta), normalised, once it has forgotten its start.

        y_0 ~ q;  each of `steps` times:
        c uniform on 0 .. |y| - 1,  y' = y[:c] + tail,  tail ~ q(. | x, y[:c])
        move to y' with probability min(1, exp((r(x, y') - r(x, y)) / beta) |y| / |y'|)

    |y| counts tokens, the one that ends the answer included; the last factor makes up for the choice of c, and with it
    the chain is reversible. q is the LM under temperature, top_k and top_p, cut at max_tokens. `take` returns the last
    state (a draw from that law) or the best answer seen (a search). The paper also votes over the states; we do not.
    """

    name: ClassVar[str] = "qalign"
    family: ClassVar[str] = "responses"
    summary: ClassVar[str] = "Run a Markov chain of responses that converges to the reward-tilted distribution."

    steps: int = setting(16, help="Proposed changes of the response.", at_least=0, typical=(0, 64), client_at_most=256)
    beta: float = setting(0.7, help="Softness of the acceptance test; lower is stricter.", above=0, typical=(0.05, 3))
    take: Literal["last", "best"] = setting(
        "last", help="Return the last state of the chain, or the best one seen.", advanced=True
    )

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.beta)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        answers: list[Segment] = []
        state, prefix = 0, Response()
        for step in range(self.steps + 1):
            place, u = map(float, uniforms(request.seed, step, 0, 2, VERDICT))
            if step:
                cut = int(place * len(answers[state].token_ids))
                prefix = beginning(answers[state], cut, request, engine)
            ask = replace(request.ask(prefix), sampling=self.sampling, segment=step)
            async with aclosing(draw(request.prompt, ask, engine, reward, answers)) as events:
                async for event in events:
                    yield event
            if step and self.moves(answers[state], answers[step], len(prefix.token_ids), u):
                state = step
        chosen = argmax(answers) if self.take == "best" else state
        for event in taken(answers, chosen, request.trace):
            yield event

    def moves(self, old: Segment, new: Segment, cut: int, u: float) -> bool:
        """Whether the chain goes from one answer to the next, which keeps `cut` of its tokens."""
        before, after = len(old.token_ids), len(new.token_ids)
        if after == cut > 0:  # a stop string that begins before the cut: q writes this answer with fewer tokens
            return False
        lengths = self.beta * math.log(max(1, before) / max(1, after))
        return self.verdict.passes(cast(float, new.reward) + lengths, cast(float, old.reward), u)


def beginning(answer: Segment, count: int, request: Request, engine: Engine) -> Response:
    """The first `count` tokens of an answer, less than all, as a response to go on from."""
    writer = engine.writer(request.ask(Response()))
    for token in answer.token_ids[:count]:
        writer.push(token)
    writer.end()
    assert writer.segment is not None
    return Response() + writer.segment

"""CDSL, constrained decoding with speculative lookaheads (Nakshatri et al., arXiv 2412.10418)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cards.boundaries import FixedLength
from cards.engines.base import Ask, Engine
from cards.engines.writer import Writer
from cards.events import Accepted, Event, Proposed, Rejected, Response, Scored, Segment
from cards.methods.base import EngineLike, Method, Request, draw_all, loaded, proposals, required, target_of
from cards.methods.tokens.driver import likeliest, within
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import setting
from cards.usage import Role, booked_as, in_role

if TYPE_CHECKING:
    from cards.engines.speculative import Floats

Helper = tuple[Role, Engine]


@dataclass(frozen=True, slots=True, kw_only=True)
class CDSL(Method):
    """Decode greedily towards a reward, with lookaheads by a small model, the `proposer`.

        The proposer generates L tokens greedily, and the LM reads them in one step.
        The first m of them are the LM's own choices; a = m / L.
        a >= agreement and r(x, y + m tokens) >= target    accept the m tokens
        a >= agreement and r < target                      one token, with lookaheads by the proposer
        a <  agreement                                     one token, with lookaheads by the LM

    The one token is argmax of log p(v) + weight * r(x, y + v + L more tokens) over the `candidates` most likely v of the LM.
    `lookahead` is L, and `target` None takes the target that the reward suggests.

    Our choices where the paper, as far as we know it, is silent: everything is greedy. L counts only the proposed tokens if
    the response ends early. The LM looks ahead only where the two models disagree, because the proposer is no guide there. A
    single token carries a reward only if its lookahead is empty.
    """

    name: ClassVar[str] = "cdsl"
    family: ClassVar[str] = "drafts"
    summary: ClassVar[str] = "Decode greedily towards a reward, and look ahead with a small model."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "reward"})

    proposer: EngineLike = setting("tiny-draft", help="Smaller LM of the same tokenizer that looks ahead.", loads="engine")
    lookahead: int = setting(
        8, help="Tokens that the small model writes ahead.", at_least=1, typical=(1, 32), client_at_most=64
    )
    agreement: float = setting(
        0.5, help="Fraction of these tokens that must be the model's own choices for them to be trusted.", above=0, at_most=1
    )
    target: float | None = setting(None, help="Target reward r* (none: suggested by the reward model).")
    weight: float = setting(1.0, help="Weight of the reward beside the logits of the model.", at_least=0, typical=(0, 20))
    candidates: int = setting(5, help="Most likely tokens that compete.", at_least=1, typical=(1, 32), client_at_most=64)

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        target, proposer = target_of(self.target, reward), loaded(self.proposer)
        request = within(request, (engine, proposer))
        response, drawn, position = Response(), Response(), 0  # drawn: also what may begin a stop string
        while response.finish_reason is None:
            ask = replace(request.ask(response), segment=position)
            with booked_as("draft"):
                [[written_ahead]] = await proposals(proposer, self.ahead(request.ask(drawn)))
            ahead = written_ahead.token_ids
            read = Response(token_ids=(*response.token_ids, *ahead[:-1]))
            logits = await engine.logits(request.prompt, read, len(ahead))
            agreed = int((logits.argmax(-1) == ahead).cumprod().sum())
            trusted = agreed >= self.agreement * len(ahead)
            refused: list[Segment] = []
            if trusted:
                segment = written(engine, ask, ahead[:agreed], Writer.push)
                yield Proposed(position, 0, segment, "draft")
                [r] = await reward.score(request.prompt, [response + segment])
                segment = replace(segment, reward=r, threshold=target)
                yield Scored(position, 0, segment)
                if r < target:
                    yield Rejected(position, 0, segment)
                    refused.append(segment)
            if refused or not trusted:
                helper: Helper = ("draft", proposer) if trusted else ("lm", engine)
                token, score = await self.token(request.ask(drawn), logits[0].astype(float), engine, helper, reward)
                segment = written(engine, ask, [token], Writer.choose)
                yield Proposed(position, len(refused), segment)
                if score is not None:
                    segment = replace(segment, reward=score)
                    yield Scored(position, len(refused), segment)
                segment = replace(segment, candidates=1 + len(refused), rejected=tuple(refused) if request.trace else ())
            yield Accepted(position, len(refused), segment)
            response, drawn = response + segment, engine.extended(request.prompt, drawn, segment.token_ids)
            position += 1

    def ahead(self, ask: Ask) -> Ask:
        """Ask what an engine would write next, greedily; a stop string does not hold it up."""
        return replace(ask, boundary=FixedLength(maximum=self.lookahead), sampling=Sampling(0.0), stop=())

    async def token(self, ask: Ask, logits: Floats, engine: Engine, helper: Helper, reward: Reward) -> tuple[int, float | None]:
        """The next token, by what `helper` would write after it, and the reward of the answer with it if that is all."""
        import numpy as np

        role, source = helper
        tokens = likeliest(logits, self.candidates)
        nexts = [engine.extended(ask.prompt, ask.response, [int(token)]) for token in tokens]

        async def further(response: Response) -> Response:
            if response.finish_reason or ask.max_tokens == 1:
                return response
            rest = self.ahead(replace(ask, response=response, max_tokens=ask.max_tokens - 1))
            [segment] = await in_role(role, draw_all, source, rest)
            return response + segment

        texts = await asyncio.gather(*map(further, nexts))
        rewards = await reward.score(ask.prompt, texts)
        best = int(np.argmax(logits[tokens] + self.weight * np.array(rewards)))  # log p is the logit and a constant
        return int(tokens[best]), rewards[best] if texts[best] is nexts[best] else None


def written(engine: Engine, ask: Ask, tokens: Sequence[int], take: Callable[[Writer, int], None]) -> Segment:
    """The segment of tokens that were chosen, as far as the answer goes; a writer takes them by `take`."""
    writer = engine.writer(replace(ask, boundary=FixedLength(maximum=len(tokens))))
    for token in tokens:
        if writer.segment is None:
            take(writer, token)
    assert writer.segment is not None
    return writer.segment

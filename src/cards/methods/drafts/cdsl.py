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
from cards.methods.base import EngineLike, Method, Request, collect_segments, loaded, propose_all, required, target_of
from cards.methods.tokens.driver import limit_to_context, proposal_logits
from cards.rewards.base import Reward
from cards.sampling import Sampling, most_likely
from cards.settings import setting
from cards.usage import Role, booked_as, in_role

if TYPE_CHECKING:
    from cards.engines.speculative import Floats

Source = tuple[Role, Engine]  # the engine that looks ahead, and the role in which its cost is counted


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
    tests: ClassVar[bool] = True
    summary: ClassVar[str] = "Decode greedily towards a reward, and look ahead with a small model."
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "logits", "reward"})

    proposer: EngineLike = setting("tiny-draft", help="Smaller LM with the same tokenizer, which looks ahead.", loads="engine")
    lookahead: int = setting(
        8, help="Number of tokens that the small model generates ahead.", at_least=1, typical=(1, 32), client_at_most=64
    )
    agreement: float = setting(
        0.5, help="Fraction of the lookahead that must equal the model's own choices to be trusted.", above=0, at_most=1
    )
    target: float | None = setting(None, help="Target reward r* (none: suggested by the reward model).")
    weight: float = setting(
        1.0, help="Weight of the reward, added to the log-probability of a token.", at_least=0, typical=(0, 20)
    )
    candidates: int = setting(
        5, help="Number of most likely tokens that compete.", at_least=1, typical=(1, 32), client_at_most=64
    )

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        reward = required(reward, self)
        target, proposer = target_of(self.target, reward), loaded(self.proposer)
        request = limit_to_context(request, (engine, proposer))
        response, decoded, index = Response(), Response(), 0  # decoded includes text held back for stop strings
        while response.finish_reason is None:
            ask = replace(request.ask(response), segment=index)
            with booked_as("draft"):
                [[draft]] = await propose_all(proposer, self.lookahead_ask(request.ask(decoded)))
            ahead = draft.token_ids
            read = Response(token_ids=(*response.token_ids, *ahead[:-1]))
            logits = await proposal_logits(engine, request, read, len(ahead))
            agreed = int((logits.argmax(-1) == ahead).cumprod().sum())
            trusted = agreed / len(ahead) >= self.agreement
            rejected: list[Segment] = []
            if trusted:
                segment = segment_of(engine, ask, ahead[:agreed], Writer.push)
                yield Proposed(index, 0, segment, "draft")
                [r] = await reward.score(request.prompt, [response + segment])
                segment = replace(segment, reward=r, threshold=target)
                yield Scored(index, 0, segment)
                if r < target:
                    yield Rejected(index, 0, segment)
                    rejected.append(segment)
            if rejected or not trusted:
                source: Source = ("draft", proposer) if trusted else ("lm", engine)
                token, score = await self.next_token(request.ask(decoded), logits[0], engine, source, reward)
                segment = segment_of(engine, ask, [token], Writer.choose)
                yield Proposed(index, len(rejected), segment)
                if score is not None:
                    segment = replace(segment, reward=score)
                    yield Scored(index, len(rejected), segment)
                segment = replace(segment, candidates=1 + len(rejected), rejected=tuple(rejected) if request.trace else ())
            yield Accepted(index, len(rejected), segment)
            response, decoded = response + segment, engine.extended(request.prompt, decoded, segment.token_ids)
            index += 1

    def lookahead_ask(self, ask: Ask) -> Ask:
        """Return an Ask for a greedy lookahead. It ignores stop strings, so that no text is held back."""
        return replace(ask, boundary=FixedLength(maximum=self.lookahead), sampling=Sampling(0.0), stop=())

    async def next_token(
        self, ask: Ask, logits: Floats, engine: Engine, source: Source, reward: Reward
    ) -> tuple[int, float | None]:
        """Return the next token by the rewards of its lookaheads, and its reward if its lookahead is empty."""
        import numpy as np

        role, proposer = source
        tokens = most_likely(logits, self.candidates)
        tokens = tokens[logits[tokens] > -np.inf]
        continuations = [engine.extended(ask.prompt, ask.response, [int(token)], ask.shaping) for token in tokens]

        async def look_ahead(response: Response) -> Response:
            if response.finish_reason or ask.max_tokens == 1:
                return response
            rest = self.lookahead_ask(replace(ask, response=response, max_tokens=ask.max_tokens - 1))
            [segment] = await in_role(role, collect_segments, proposer, rest)
            return response + segment

        responses = await asyncio.gather(*map(look_ahead, continuations))
        rewards = await reward.score(ask.prompt, responses)
        best = int(np.argmax(logits[tokens] + self.weight * np.array(rewards)))  # log p is the logit up to a constant
        return int(tokens[best]), rewards[best] if responses[best] is continuations[best] else None


def segment_of(engine: Engine, ask: Ask, tokens: Sequence[int], push: Callable[[Writer, int], None]) -> Segment:
    """Return the segment of these tokens, up to the end of the response; `push` passes each one to a writer."""
    writer = engine.writer(replace(ask, boundary=FixedLength(maximum=len(tokens))))
    for token in tokens:
        if writer.segment is None:
            push(writer, token)
    assert writer.segment is not None
    return writer.segment

"""Token by token: methods that choose each token themselves, by next-token logits of one or several models, or by rewards."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cards.boundaries import Boundary, FixedLength, Whole
from cards.engines.base import Engine
from cards.errors import PromptError
from cards.events import Accepted, Event, Prompt, Proposed, Response, Scored
from cards.methods.base import Method, Request, Sampled, required
from cards.rewards.base import Reward
from cards.sampling import Sampling, distribution, pick, uniforms
from cards.settings import setting
from cards.usage import count_round, in_role

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Law = Callable[[Response], Awaitable[Floats]]  # probabilities [vocabulary] of the token after a response


async def tokenwise(
    request: Request, engine: Engine, law: Law, chunk: int | None, reward: Reward | None = None
) -> AsyncGenerator[Event, None]:
    """Draw each token from `law`, by the random numbers that Vanilla would use; hand text out every `chunk` tokens.

    The law is asked about every token drawn, also where the end of the text is held back because it may begin a stop string.
    A chunk carries the reward of the answer with it, if there is a reward.
    """
    boundary: Boundary = Whole() if chunk is None else FixedLength(maximum=chunk)
    drawn, response, position = Response(), Response(), 0
    while response.finish_reason is None:
        writer = engine.writer(replace(request.ask(response), boundary=boundary, segment=position))
        u = uniforms(request.seed, position, 0, writer.most)
        while (segment := writer.segment) is None:
            count_round()
            token = pick(await law(drawn), float(u[len(writer.tokens)]))
            drawn = engine.extended(request.prompt, drawn, [token])
            writer.choose(token)
        yield Proposed(position, 0, segment)
        response = response + segment
        if reward is not None:
            [score] = await reward.score(request.prompt, [response])
            segment = replace(segment, reward=score)
            yield Scored(position, 0, segment)
        yield Accepted(position, 0, segment)
        position += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(Sampled):
    """Base: next-token scores are a function of the logits of several LMs. Text is handed out every `chunk` tokens."""

    family: ClassVar[str] = "tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    chunk: int | None = setting(
        16, help="Tokens between two emitted pieces of text (none: all at the end).", at_least=1, advanced=True
    )

    @property
    @abstractmethod
    def others(self) -> Sequence[Engine]:
        """The models besides the one that answers."""

    @abstractmethod
    def mix(self, logits: Floats, *others: Floats) -> Floats:
        """Scores [vocabulary] from the logits [vocabulary] of the LM and of the others."""

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        engines = (engine, *self.others)

        async def law(response: Response) -> Floats:
            others = (in_role("draft", last_logits, e, request.prompt, response) for e in self.others)
            logits = await asyncio.gather(last_logits(engine, request.prompt, response), *others)
            tokens = min(map(len, logits))  # models that share a tokenizer may pad its vocabulary to different lengths
            return distribution(self.mix(*(z[:tokens] for z in logits)), self.sampling)

        return tokenwise(within(request, engines), engine, law, self.chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guided(Method):
    """Base: the `top_k` likeliest next tokens are scored by their logits and by rewards of the text with each of them;
    others are out of the question. temperature 0 takes the highest score."""

    family: ClassVar[str] = "tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "reward"})

    weight: float = setting(1.5, help="Weight of the reward beside the logits of the model.", at_least=0, typical=(0, 20))
    top_k: int = setting(
        10,
        help="Number of most likely tokens that the reward scores.",
        at_least=1,
        typical=(1, 100),
        client_at_most=100,
        advanced=True,
    )
    temperature: float = setting(0.0, help="Temperature of the choice; 0 takes the highest score.", at_least=0, typical=(0, 2))
    chunk: int | None = setting(
        16, help="Tokens between two emitted pieces of text (none: all at the end).", at_least=1, advanced=True
    )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k)

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        """Scores [k] of tokens with these logits [k] and these rewards [k] of `reward`."""
        return logits + self.weight * rewards

    def steers(self, logits: Floats) -> bool:
        """Whether the next token, of which the LM says this, is worth asking the reward about; else the LM draws it."""
        return True

    async def rewards(
        self, request: Request, engine: Engine, reward: Reward, response: Response, followers: Sequence[Response]
    ) -> Sequence[float]:
        """What the followers, each the response with a token more, are worth."""
        return await reward.score_next(request.prompt, response, followers)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        judge, bounded = required(reward, self), within(request, [engine])

        async def law(response: Response) -> Floats:
            import numpy as np

            logits = await last_logits(engine, request.prompt, response)
            if not self.steers(logits):
                return distribution(logits, self.sampling)
            tokens = likeliest(logits, self.top_k)
            followers = [engine.extended(request.prompt, response, [int(token)]) for token in tokens]
            rewards = await self.rewards(bounded, engine, judge, response, followers)
            scores = np.full_like(logits, -np.inf)
            scores[tokens] = self.score(logits[tokens], np.array(rewards), judge)
            return distribution(scores, self.sampling)

        return tokenwise(bounded, engine, law, self.chunk, judge)


async def last_logits(engine: Engine, prompt: Prompt, response: Response) -> Floats:
    """Logits [vocabulary] of the token after a response."""
    import numpy as np

    [logits] = await engine.logits(prompt, response)
    return np.asarray(logits, np.float64)


def likeliest(logits: Floats, count: int) -> NDArray[np.intp]:
    """The tokens with the `count` highest logits, in rising order."""
    import numpy as np

    return np.sort(np.argpartition(-logits, min(count, len(logits)) - 1)[:count])


def within(request: Request, engines: Sequence[Engine]) -> Request:
    """The request, its max_tokens no more than all these engines can read, nor than its room. Raises PromptError."""
    least = min(engines, key=lambda engine: engine.context)
    room = least.context - len(request.prompt.token_ids)
    if room < 1:
        raise PromptError(
            f"The prompt has {len(request.prompt.token_ids)} tokens, and the context of {least.name!r} is {least.context} with "
            "the answer: shorten the prompt or load the engine with a larger context."
        )
    return replace(request, max_tokens=min(request.max_tokens, room, room if request.room is None else request.room))

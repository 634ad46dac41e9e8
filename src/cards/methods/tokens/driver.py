"""Choose every token by the next-token logits of one or several models, or by rewards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from cards.boundaries import Boundary, FixedLength, Whole
from cards.engines.base import Ask, Engine
from cards.engines.mixture import Mixture
from cards.engines.text import room_left
from cards.events import Accepted, Event, Proposed, Response, Scored
from cards.methods.base import Method, Request, Sampled, required
from cards.rewards.base import Reward
from cards.sampling import Sampling, distribution, most_likely, pick, uniforms, valid_logits
from cards.settings import setting
from cards.usage import count_round

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Law = Callable[[Response], Awaitable[Floats]]  # returns the probabilities [vocabulary] of the token after a response


async def sample_tokens(
    request: Request, engine: Engine, law: Law, chunk: int | None, reward: Reward | None = None
) -> AsyncGenerator[Event, None]:
    """Sample each token from `law` with the random numbers of Vanilla, and emit a segment every `chunk` tokens.

    The law always gets every sampled token, even if text is held back because it may begin a stop string. With a reward, a
    segment carries the reward of the response so far.
    """
    boundary: Boundary = Whole() if chunk is None else FixedLength(maximum=chunk)
    sampled, response, index = Response(), Response(), 0
    while response.finish_reason is None:
        writer = engine.writer(replace(request.ask(response), boundary=boundary, segment=index))
        u = uniforms(request.seed, index, 0, writer.most)
        while (segment := writer.segment) is None:
            count_round()
            token = pick(await law(sampled), float(u[len(writer.tokens)]))
            sampled = engine.extended(request.prompt, sampled, [token], request.shaping)
            writer.choose(token)
        yield Proposed(index, 0, segment)
        response = response + segment
        if reward is not None:
            [score] = await reward.score(request.prompt, [response])
            segment = replace(segment, reward=score)
            yield Scored(index, 0, segment)
        yield Accepted(index, 0, segment)
        index += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsMethod(Sampled, Mixture):
    """Base class of mixtures: rules that combine the next-token logits of several LMs, or after several prompts.

    As a method, it samples from the mixture. As an option of the engine (`load_engine("tiny", mix=...)`), every method can
    run on the mixture; the settings of this class then belong to that method.
    """

    family: ClassVar[str] = "tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    chunk: int | None = setting(
        16, help="Number of tokens per emitted segment (none: one segment at the end).", at_least=1, advanced=True
    )

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        mixed = self.over(engine)

        async def law(response: Response) -> Floats:
            [logits] = await proposal_logits(mixed, request, response)
            return distribution(logits, self.sampling, len(response.token_ids))

        return sample_tokens(request, mixed, law, self.chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGuidedMethod(Method):
    """Base class of methods that score the `top_k` most likely tokens by logit and by the reward of the response with each.

    Other tokens are excluded. temperature 0 takes the highest score.
    """

    family: ClassVar[str] = "tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "reward"})

    weight: float = setting(1.5, help="Weight of the reward, added to the logit of a token.", at_least=0, typical=(0, 20))
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
        16, help="Number of tokens per emitted segment (none: one segment at the end).", at_least=1, advanced=True
    )

    @property
    def sampling(self) -> Sampling:
        """Return the sampling parameters of the choice."""
        return Sampling(self.temperature, self.top_k)

    def score(self, logits: Floats, rewards: Floats, reward: Reward) -> Floats:
        """Return the scores [k] of tokens from their logits [k] and rewards [k]."""
        return logits + self.weight * rewards

    def uses_reward(self, logits: Floats) -> bool:
        """Return whether the reward is used for the token with these logits. If not, the LM samples it."""
        return True

    async def rewards(
        self, request: Request, engine: Engine, reward: Reward, response: Response, continuations: Sequence[Response]
    ) -> Sequence[float]:
        """Return the rewards of the continuations, each of which is the response with one more token."""
        return await reward.score_next(request.prompt, response, continuations)

    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        scorer, limited = required(reward, self), limit_to_context(request, [engine])

        async def law(response: Response) -> Floats:
            import numpy as np

            [logits] = await proposal_logits(engine, request, response)
            if not self.uses_reward(logits):
                return distribution(logits, self.sampling, len(response.token_ids))
            tokens = most_likely(logits, self.top_k)
            tokens = tokens[logits[tokens] > -np.inf]
            continuations = [engine.extended(request.prompt, response, [int(token)], request.shaping) for token in tokens]
            rewards = await self.rewards(limited, engine, scorer, response, continuations)
            scores = np.full_like(logits, -np.inf)
            scores[tokens] = self.score(logits[tokens], np.array(rewards), scorer)
            return distribution(scores, self.sampling, len(response.token_ids))

        return sample_tokens(limited, engine, law, self.chunk, scorer)


async def proposal_logits(engine: Engine, request: Ask | Request, response: Response, last: int = 1) -> Floats:
    """Return the logits [last, vocabulary] of the tokens up to the one after a response, shaped, without excluded tokens.

    Raises ModelError if the logits are NaN or +inf, and SettingError if the grammar of the request allows no token.
    """
    import numpy as np

    prompt, ids = request.prompt, response.token_ids
    rows = await engine.shaped_logits(prompt, response, last, engine.shaper(request.shaping, prompt))
    excluded = engine.exclusions
    return np.stack(
        [
            excluded.masked(valid_logits(row, at), prompt.token_ids + ids[:at], at)
            for at, row in enumerate(rows, len(ids) + 1 - last)
        ]
    )


async def proposal_logprobs(
    engine: Engine, request: Ask | Request, response: Response, last: int, temperature: float
) -> Floats:
    """Return the log-probabilities [last] of the response's last tokens at a temperature, as the request shapes them."""
    import numpy as np

    ids = response.token_ids
    if not last or engine.shaper(request.shaping, request.prompt) is None:
        return await engine.logprobs(request.prompt, response, last, temperature)
    rows = await proposal_logits(engine, request, Response(token_ids=ids[:-1]), last) / temperature
    return np.array([row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, ids[-last:], strict=True)])


def limit_to_context(request: Request, engines: Sequence[Engine]) -> Request:
    """Return the request with max_tokens limited to the contexts of all engines. Raises PromptTooLongError if nothing fits."""
    room = min(room_left(engine.name, engine.context, len(request.prompt.token_ids)) for engine in engines)
    return replace(request, max_tokens=min(request.max_tokens, room, room if request.room is None else request.room))

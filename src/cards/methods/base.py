"""The Method contract, shared settings, and the public helpers for writing methods."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar, TypeVar, cast

from cards.engines.base import Ask, Engine
from cards.errors import MismatchError, SettingError
from cards.events import Event, Prompt, Response, Segment
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import Nested, check_settings, setting, settings_of
from cards.shaping import NO_SHAPING, Shaping
from cards.usage import count_round

EngineLike = str | Engine
RewardLike = str | Reward
Model = TypeVar("Model", Engine, Reward)
FAMILIES = {
    "segments": "Accept or reject segments",
    "search": "Search over incomplete responses",
    "responses": "Choose among complete responses",
    "tokens": "Choose every token",
    "drafts": "Generate with a second model",
    "plain": "Plain sampling",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and the options of its request."""

    prompt: Prompt
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    trace: bool = False  # whether the result keeps rejected candidates
    room: int | None = None  # response tokens that fit into the contexts of all models
    shaping: Shaping = NO_SHAPING

    def ask(self, response: Response) -> Ask:
        """Return an Ask for one continuation of the response, up to the token limit of the request."""
        limit = self.max_tokens if self.room is None else min(self.max_tokens, self.room)
        left = limit - len(response.token_ids)
        return Ask(self.prompt, response, left, seed=self.seed, stop=self.stop, shaping=self.shaping)


class Method(Nested, ABC):
    """A decoding-time algorithm: a frozen dataclass of settings whose `stream` yields events.

    `summary` describes the method in one sentence. `needs` lists the required engine capabilities (`segments`, `logits`,
    `logprobs`, `layers`), and `reward` if a reward is required. `siblings` is true if rejected candidates continue the same
    prefix as the accepted one, so that they form preference pairs of segments. `whole` is true if it decides only on complete
    responses. `tests` is true if each candidate passes or fails a test, so that the method has an acceptance rate.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "reward"})
    siblings: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    tests: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)
        self.validate()

    def validate(self) -> None:
        """Check the settings against each other. Raises SettingError if they conflict."""

    @property
    def needed(self) -> frozenset[str]:
        """Return `needs` plus the requirements of the current settings."""
        return self.needs

    @property
    def remedy(self) -> str:
        """Return advice on the settings in use if most candidates fail the test, or an empty text."""
        return next((inner.remedy for inner in self.nest[1:] if inner.remedy), "")

    @property
    def writes(self) -> tuple[str, ...]:
        """Return the texts that the method itself writes into a response, for which the engine needs tokens."""
        return ()

    @property
    def models(self) -> list[Engine | Reward]:
        """Return the loaded models among the settings, and those of inner methods."""
        values = [
            getattr(method, name) for method in self.nest for name, item in settings_of(method).items() if item.spec.loads
        ]
        found = [model for value in values for model in (value if isinstance(value, tuple) else (value,))]
        return [model for model in found if isinstance(model, Engine | Reward)]

    @property
    def nest(self) -> list[Method]:
        """Return this method, the methods among its settings, and those among theirs."""
        inner = [value for name in settings_of(self) if isinstance(value := getattr(self, name), Method)]
        return [self, *(method for one in inner for method in one.nest)]

    def resolved(self, reward: Reward) -> Method:
        """Return this method with the settings that it leaves to the reward, also in the methods among its settings."""
        inner = {name: value.resolved(reward) for name in settings_of(self) if isinstance(value := getattr(self, name), Method)}
        return replace(self, **inner) if inner else self  # type: ignore[type-var]

    @property
    def kl_bound(self) -> float | None:
        """Return an upper bound on KL(responses || proposal) in nats, or None if none is known."""
        return None

    @abstractmethod
    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        """Yield events up to and including the segment whose finish_reason is set. Decoder adds Done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated(Method):
    """Base class of methods whose proposal is truncated to the most likely tokens."""

    top_k: int | None = setting(
        40, help="Number of most likely tokens to sample from.", at_least=1, typical=(1, 100), advanced=True
    )
    top_p: float = setting(
        1.0, help="Total probability of the most likely tokens to sample from.", above=0, at_most=1, advanced=True
    )
    min_p: float = setting(
        0.0, help="Lowest probability of tokens to sample from, relative to the highest.", at_least=0, at_most=1, advanced=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Truncated):
    """Base class of methods that sample under temperature, top_k, top_p and min_p."""

    temperature: float = setting(0.7, help="Temperature of the proposal; 0 is greedy.", at_least=0, typical=(0, 2))

    @property
    def sampling(self) -> Sampling:
        """Return the sampling parameters of the proposal."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


def loaded(model: str | Model) -> Model:
    """Return the model of a setting. Raises MismatchError if it is still a name, because only Decoder loads models."""
    if isinstance(model, str):
        raise MismatchError(
            f"Model {model!r} is not loaded. Run the method through Decoder, which loads the models in its settings."
        )
    return model


def required(reward: Reward | None, method: Method) -> Reward:
    """Return the reward. Raises MismatchError if there is none."""
    if reward is None:
        raise MismatchError(
            f"Method {method.name!r} needs a reward. Pass one, or choose a method that needs none (see `cards methods`)."
        )
    return reward


def target_of(target: float | None, reward: Reward) -> float:
    """Return the target reward r*: `target`, else the one that the reward suggests. Raises SettingError if there is none."""
    target = target if target is not None else reward.target
    if target is None:
        raise SettingError(
            f"No target reward r* is known for {reward.name!r}: set target. Rewards have no common scale (published values "
            "run from -0.5 to 10), so choose a high quantile of the rewards of the model's own responses."
        )
    return target


def propose(engine: Engine, ask: Ask) -> AsyncGenerator[list[Segment], None]:
    """Yield the candidates of an ask in batches, as soon as they are complete, and count one round."""
    count_round()
    return engine.propose(ask)


async def propose_all(engine: Engine, *asks: Ask) -> list[list[Segment]]:
    """Return all candidates of each ask, proposed concurrently in one round.

    Neighbouring asks that continue the same response with consecutive candidates are one call, which reads the prefix once.
    """
    if asks:
        count_round()
    joined: list[Ask] = []
    for ask in asks:
        if joined and replace(joined[-1], first=ask.first, n=ask.n) == ask and ask.first == joined[-1].first + joined[-1].n:
            joined[-1] = replace(joined[-1], n=joined[-1].n + ask.n)
        else:
            joined.append(ask)
    found = await asyncio.gather(*(collect_segments(engine, ask) for ask in joined))
    segments = iter([segment for part in found for segment in part])
    return [list(islice(segments, ask.n)) for ask in asks]


async def collect_segments(engine: Engine, ask: Ask) -> list[Segment]:
    """Return all segments of an ask without counting a round, as lookaheads do."""
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


def argmax(segments: Sequence[Segment]) -> int:
    """Return the index of the scored segment with the highest reward (the first one in case of ties)."""
    return max(range(len(segments)), key=lambda i: cast(float, segments[i].reward))

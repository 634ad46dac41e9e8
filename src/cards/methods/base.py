"""The Method contract, and the settings that methods share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

from cards.engines.base import Ask, Engine
from cards.errors import MismatchError, SettingError
from cards.events import Event, Prompt, Response, Segment
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.settings import check_settings, setting, settings_of
from cards.usage import count_round

EngineLike = str | Engine
RewardLike = str | Reward
Model = TypeVar("Model", Engine, Reward)
FAMILIES = {
    "segments": "Accept or reject segments",
    "search": "Search over incomplete responses",
    "responses": "Choose among whole responses",
    "tokens": "Choose every token",
    "drafts": "Write with a second model",
    "plain": "Plain sampling",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what its user wants of the answer."""

    prompt: Prompt
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    trace: bool = False  # keep rejected candidates in the result
    room: int | None = None  # tokens that the answer may have by the models' contexts

    def ask(self, response: Response) -> Ask:
        most = self.max_tokens if self.room is None else min(self.max_tokens, self.room)
        return Ask(self.prompt, response, most - len(response.token_ids), seed=self.seed, stop=self.stop)


class Method(ABC):
    """A decoding-time algorithm: a frozen dataclass of settings whose `stream` yields events.

    `summary` says in one sentence what it does. `needs` names what it asks of the engine (`segments`, `logits`, `logprobs`),
    and `reward` if it needs one. `siblings`: whether the candidates that it rejects share their beginning with the accepted
    one, which makes them preference pairs of segments.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"segments", "reward"})
    siblings: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)
        self.validate()

    def validate(self) -> None:  # noqa: B027  (most settings do not depend on each other)
        """Check the settings against each other. Raises SettingError."""

    @property
    def needed(self) -> frozenset[str]:
        """`needs`, with what these settings need besides."""
        return self.needs

    @property
    def models(self) -> list[Engine | Reward]:
        """The models that its settings hold, once they are loaded."""
        values = [getattr(self, name) for name, own in settings_of(self).items() if own.spec.loads]
        found = [model for value in values for model in (value if isinstance(value, tuple) else (value,))]
        return [model for model in found if isinstance(model, Engine | Reward)]

    @property
    def kl_bound(self) -> float | None:
        """An upper bound of KL(responses || proposal) in nats, where one is known."""
        return None

    @abstractmethod
    def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        """Yield events up to and including the segment whose finish_reason is set; Decoder adds Done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated(Method):
    """Base of methods whose proposal is cut to the most likely tokens."""

    top_k: int | None = setting(
        40, help="Number of most likely tokens to sample from.", at_least=1, typical=(1, 100), advanced=True
    )
    top_p: float = setting(
        1.0, help="Total probability of the most likely tokens to sample from.", above=0, at_most=1, advanced=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Truncated):
    """Base of methods that sample under temperature, top_k and top_p."""

    temperature: float = setting(0.7, help="Temperature of the proposal; 0 is greedy.", at_least=0, typical=(0, 2))

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def loaded(model: str | Model) -> Model:
    """The model of a setting. Raises MismatchError if it is still a name, which Decoder loads."""
    if isinstance(model, str):
        raise MismatchError(f"The model {model!r} is not loaded: decode through Decoder, which loads the models of settings.")
    return model


def required(reward: Reward | None, method: Method) -> Reward:
    """The reward, or MismatchError if there is none."""
    if reward is None:
        raise MismatchError(f"Method {method.name!r} needs a reward model; `cards methods` lists what each one needs.")
    return reward


def target_of(target: float | None, reward: Reward) -> float:
    """The target reward r*: the method's, else the one the reward suggests, else SettingError."""
    target = target if target is not None else reward.target
    if target is None:
        raise SettingError(
            f"No target reward r* is known for {reward.name!r}: set target. Rewards have no common scale (published "
            "values run from -0.5 to 10); take a high quantile of the rewards of the model's own answers."
        )
    return target


def propose(engine: Engine, ask: Ask) -> AsyncGenerator[list[Segment], None]:
    """Ask the engine for candidates, in lists as they get ready. Counts a round."""
    count_round()
    return engine.propose(ask)


async def proposals(engine: Engine, *asks: Ask) -> list[list[Segment]]:
    """All candidates of each ask, drawn side by side in one round."""
    if asks:
        count_round()
    return await asyncio.gather(*(draw_all(engine, ask) for ask in asks))


async def draw_all(engine: Engine, ask: Ask) -> list[Segment]:
    """All segments of an ask. Used directly, to look ahead, it does not count a round."""
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


def argmax(segments: Sequence[Segment]) -> int:
    """The number of the scored segment with the highest reward, the first of equals."""
    return max(range(len(segments)), key=lambda i: cast(float, segments[i].reward))

"""The models that all methods of a study share, and their grades for finished responses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from cards.console import show_warning
from cards.decoder import Decoder, PromptLike
from cards.engines.base import Engine
from cards.errors import CardsError, PromptError
from cards.events import Response
from cards.methods.base import Method
from cards.methods.vanilla import Vanilla
from cards.parts import Composite
from cards.placement import Placement
from cards.prompts import ChatOptions
from cards.registry import with_models
from cards.rewards.base import Reward
from cards.study.prompts import PromptRecord

T = TypeVar("T")


@dataclass
class Models(Composite):
    """The engine and the reward that methods use, and the gold reward, which only grades.

    `logprobs` False leaves out the log-probabilities of responses, each of which costs a pass over a prompt and the response.
    Models that settings name are loaded once. `forget` clears all caches, so that every method starts cold.
    """

    engine: Engine
    reward: Reward | None = None
    gold: Reward | None = None
    placement: Placement = field(default_factory=Placement)
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)  # models that settings name, by loader and name
    logprobs: bool = True

    def __post_init__(self) -> None:
        self.parts = [model for model in (self.engine, self.reward, self.gold) if model is not None]

    def decoder(self, method: Method) -> Decoder:
        """Return a decoder for a method. Raises MismatchError if the models lack a capability that the method needs."""
        loaded = with_models(
            method, self.engine, partial(self._load, self.placement.load_part), partial(self._load, self.placement.load_reward)
        )
        return Decoder(self.engine, self.reward, loaded)

    def fitting(self, records: Sequence[PromptRecord], options: ChatOptions, max_tokens: int) -> list[PromptRecord]:
        """Return the prompts that leave room for `max_tokens` tokens in every model's context, and warn about the others.

        Raises the PromptError of the first prompt if the engine can read none of them.
        """
        options.check_template(self.engine.chats)
        contexts = [model.context for model in (self.engine, self.reward, self.gold) if model is not None]
        room = min(context for context in contexts if context is not None) - max_tokens

        errors: list[PromptError] = []

        def fits(record: PromptRecord) -> bool:
            try:
                return len(self.engine.encode(options.prompt(record.prompt, self.engine.chats)).token_ids) <= room
            except PromptError as error:
                errors.append(error)
                return False

        fitting = [record for record in records if fits(record)]
        if records and len(errors) == len(records):
            raise errors[0]
        if skipped := len(records) - len(fitting):
            show_warning(f"{skipped} of {len(records)} prompts leave no room for {max_tokens} new tokens and are skipped.")
        return fitting

    async def warm_up(self, prompt: PromptLike) -> None:
        """Draw and score a few tokens, so that one-time start-up work is not charged to the first method."""
        with suppress(CardsError):  # the measured methods report the same error
            result = await Decoder(self.engine, None, Vanilla()).agenerate(prompt, max_tokens=8)
            if self.reward is not None:
                await self.reward.score(self.engine.encode(prompt), [Response(result.text, result.token_ids)])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in a new event loop and return its result. Ctrl-C waits for the current step of the engines."""

        async def settled() -> T:
            try:
                return await work
            finally:  # neither the loop nor Python may end in the middle of a step
                await self.settle()

        return asyncio.run(settled())

    def _load(self, load: Callable[[str], T], name: str) -> T:
        key = load.__name__, name
        if key not in self.loaded:
            self.loaded[key] = load(name)
            self.parts = [*self.parts, self.loaded[key]]
        return cast(T, self.loaded[key])

    async def grades(self, prompt: PromptLike, other: PromptLike | None, response: Response) -> dict[str, float | None]:
        """Return the reward and gold reward of a response, and its log-probability after `prompt` and after `other`.

        A value is None if there is no model for it.
        """
        grades: dict[str, float | None] = {}
        encoded = self.engine.encode(prompt)
        for name, reward in (("reward", self.reward), ("gold", self.gold)):
            grades[name] = None if reward is None else (await reward.score(encoded, [response]))[0]
        for name, context in (("logprob", prompt), ("logprob_other", other)):
            grades[name] = None
            if self.logprobs and context is not None and "logprobs" in self.engine.has and response.token_ids:
                grades[name] = float((await self.engine.logprobs(self.engine.encode(context), response)).sum())
        return grades

"""The models that several methods run on, and what they say of finished answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from cards.decoder import Decoder, PromptLike
from cards.engines.base import Engine
from cards.errors import CardsError, PromptError
from cards.events import Response
from cards.methods.base import Method
from cards.methods.vanilla import Vanilla
from cards.placement import Placement
from cards.prompts import format_prompt
from cards.registry import with_models
from cards.rewards.base import Reward
from cards.study.prompts import PromptRecord

T = TypeVar("T")


@dataclass(slots=True)
class Models:
    """What methods run on, and the reward that only grades. Models that settings name are loaded once."""

    engine: Engine
    reward: Reward | None = None
    gold: Reward | None = None
    placement: Placement = field(default_factory=Placement)
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)  # models that settings name, by kind and name

    def decoder(self, method: Method) -> Decoder:
        """Raises MismatchError if the method needs what is not there."""
        loaded = with_models(
            method, self.engine, partial(self._load, self.placement.part), partial(self._load, self.placement.reward)
        )
        return Decoder(self.engine, self.reward, loaded)

    def fitting(self, records: Sequence[PromptRecord], form: str, max_tokens: int) -> list[PromptRecord]:
        """Return the prompts that leave room for so many tokens in the contexts of the models."""
        contexts = [model.context for model in (self.engine, self.reward, self.gold) if model is not None]
        room = min(context for context in contexts if context is not None) - max_tokens

        def fits(record: PromptRecord) -> bool:
            try:
                return len(self.engine.encode(format_prompt(record.prompt, form, self.engine.chats)).token_ids) <= room
            except PromptError:
                return False

        return [record for record in records if fits(record)]

    async def warm_up(self, prompt: PromptLike) -> None:
        """Draw and score a few tokens, so that the first method does not pay for what happens once."""
        with suppress(CardsError):  # whoever is measured will say it
            result = await Decoder(self.engine, None, Vanilla()).agenerate(prompt, max_tokens=8)
            if self.reward is not None:
                await self.reward.score(self.engine.encode(prompt), [Response(result.text, result.token_ids)])

    def forget(self) -> None:
        """Let nobody profit from what others have read."""
        for model in (self.engine, self.reward, self.gold, *self.loaded.values()):
            if model is not None:
                model.forget()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, in an event loop of its own, which Ctrl-C ends in good order."""

        async def settled() -> T:
            try:
                return await work
            finally:  # the loop must not close, nor Python end, in the middle of a step
                for model in (self.engine, *self.loaded.values()):
                    if isinstance(model, Engine):
                        await model.settle()

        return asyncio.run(settled())

    def _load(self, load: Callable[[str], T], name: str) -> T:
        key = load.__name__, name
        if key not in self.loaded:
            self.loaded[key] = load(name)
        return cast(T, self.loaded[key])

    async def grades(self, prompt: PromptLike, other: PromptLike | None, response: Response) -> dict[str, float | None]:
        """Reward and gold reward of an answer, its log-probability under the LM, and the one after another prompt."""
        graded: dict[str, float | None] = {}
        encoded = self.engine.encode(prompt)
        for name, reward in (("reward", self.reward), ("gold", self.gold)):
            graded[name] = None if reward is None else (await reward.score(encoded, [response]))[0]
        for name, asked in (("logprob", prompt), ("logprob_other", other)):
            graded[name] = None
            if asked is not None and "logprobs" in self.engine.has and response.token_ids:
                graded[name] = float((await self.engine.logprobs(self.engine.encode(asked), response)).sum())
        return graded

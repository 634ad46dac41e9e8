"""Rewards of reasoning models: only what follows the thinking is scored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from cards.errors import SettingError, check
from cards.events import Prompt, Response
from cards.parts import Composite
from cards.rewards.base import Reward
from cards.thinking import Markers, markers_of


class AfterThinking(Reward):
    """Another reward for the answer of a reasoning model: the response without its thinking.

    The thinking is what stands between `opening` and `closing`, such as `<think>` and `</think>`; None takes them from the
    chat template of the LM. While the response is still thinking, the reward is that of the bare prompt.

    `skip` says what a Decoder does with the thinking at the beginning of a response. If true, the LM samples it once, without
    tests and without calls of the reward, and the method begins after it. If false, the method treats it like other text. None
    skips it for methods that decide on incomplete responses; methods that choose among complete responses let each think.
    """

    kind: ClassVar[str] = "after-thinking"
    wraps: ClassVar[bool] = True

    def __init__(
        self, reward: Reward, *, skip: bool | None = None, opening: str | None = None, closing: str | None = None
    ) -> None:
        check(
            (opening is None) == (closing is None), f"Give both opening and closing, or none, got {opening!r} and {closing!r}."
        )
        self.reward, self.skip = reward, skip
        self.given = None if opening is None or closing is None else Markers(opening, closing)
        self.parts, self.scale, self.target = (reward,), reward.scale, reward.target
        self.context = None  # the reward does not read the thinking
        self.name = f"after-thinking:{reward.name}"

    @classmethod
    def named(
        cls, details: str, *, skip: bool | None = None, opening: str | None = None, closing: str | None = None, **options: Any
    ) -> AfterThinking:
        """Return the reward for `NAME`, the name of the inner reward, which gets `options`."""
        from cards.rewards.loader import load_reward

        return cls(load_reward(details, **options), skip=skip, opening=opening, closing=closing)

    def markers(self, prompt: Prompt) -> Markers:
        """Return the markers of the thinking in responses to the prompt. Raises SettingError if they are not known."""
        found = self.given or markers_of(prompt.template)
        if found is None:
            raise SettingError(
                "The chat template of the model has no known markers of thinking. Give the reward after-thinking its opening "
                "and closing."
            )
        return found

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        scores: dict[int, float] = {}

        async def score(prompt: Prompt, group: dict[int, Response]) -> None:
            if group:
                scores.update(zip(group, await self.reward.score(prompt, list(group.values())), strict=True))

        plain, answers = self._split(prompt, responses)
        await asyncio.gather(score(prompt, plain), score(self._prompt(prompt), answers))
        return [scores[i] for i in range(len(responses))]

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        if self._split(prompt, [response, *followers])[1]:
            return await self.rate(prompt, followers)
        return await self.reward.score_next(prompt, response, followers)

    def _split(self, prompt: Prompt, responses: Sequence[Response]) -> tuple[dict[int, Response], dict[int, Response]]:
        """Return the responses without thinking, and the answers of the others, by number."""
        markers = self.markers(prompt)
        opened = markers.opened(prompt.text) is not None
        plain, answers = dict[int, Response](), dict[int, Response]()
        for i, response in enumerate(responses):
            text = markers.answer(response.text, opened, response.finish_reason is not None)
            if opened or text != response.text:
                answers[i] = replace(response, text=text, token_ids=response.token_ids if text else ())
            else:
                plain[i] = response
        return plain, answers

    def _prompt(self, prompt: Prompt) -> Prompt:
        """Return the prompt for rewards that read answers. They read text, because the tokens contain the thinking."""
        before = self.markers(prompt).opened(prompt.text)
        return replace(prompt, text=prompt.text if before is None else before, vocabulary="")


class Continuation(Reward):
    """Another reward, of the response to `prompt` that begins with `start` and goes on with the scored responses."""

    def __init__(self, reward: Reward, prompt: Prompt, start: Response) -> None:
        self.reward, self.prompt, self.start, self.parts = reward, prompt, start, (reward,)
        self.scale, self.target, self.context, self.name = reward.scale, reward.target, reward.context, reward.name

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        return await self.reward.score(self.prompt, [self._whole(response) for response in responses])

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        return await self.reward.score_next(self.prompt, self._whole(response), [self._whole(f) for f in followers])

    def _whole(self, response: Response) -> Response:
        text, token_ids = self.start.text + response.text, self.start.token_ids + response.token_ids
        return replace(response, text=text, token_ids=token_ids)


def thinking_rewards(parts: Sequence[Composite]) -> Iterator[AfterThinking]:
    """Yield the rewards of answers among the objects and their parts."""
    for part in parts:
        if isinstance(part, AfterThinking):
            yield part
        yield from thinking_rewards(part.parts)

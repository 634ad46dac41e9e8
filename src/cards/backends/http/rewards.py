"""Rewards from servers, in the forms of text-embeddings-inference and plain JSON."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RefusedError
from cards.errors import CardsError, RewardError, SettingError, UnavailableError, UnknownNameError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward

if TYPE_CHECKING:
    from cards.backends.classifier import Output

BATCH = 32  # texts in a request: what text-embeddings-inference takes unless told otherwise


class HTTPReward(Reward, ABC):
    """Texts go to a server, scores come back, BATCH at a time. What the server does not do is a RewardError."""

    path: str

    def __init__(self, client: Client, *, output: Output = None, target: float | None = None) -> None:
        self.client, self.output, self.target = client, output, target
        self.name = client.address + self.path

    @abstractmethod
    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        """What is asked."""

    @abstractmethod
    def read(self, answer: Any) -> list[float]:
        """The scores, in the order of the responses."""

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        parts = [responses[i : i + BATCH] for i in range(0, len(responses), BATCH)]
        answers = await asked(self.client, self.path, [self.body(prompt, part) for part in parts])
        scores: list[float] = []
        for answer, part in zip(answers, parts, strict=True):
            try:
                found = [float(score) for score in self.read(answer)]
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, CardsError):
                    raise
                raise RewardError(f"The reward at {self.name} answered in another form: {str(answer)[:200]}") from error
            if len(found) != len(part):
                raise RewardError(f"The reward at {self.name} gave {len(found)} scores for {len(part)} responses.")
            scores += found
        return scores

    async def aclose(self) -> None:
        await self.client.aclose()


async def asked(client: Client, path: str, bodies: Sequence[Any]) -> list[Any]:
    """The answers to all bodies, asked at once. Raises RewardError where there are none, SettingError on a wrong request."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.post(path, body)) for body in bodies]
    except ExceptionGroup as errors:
        error = errors.exceptions[0]
        if isinstance(error, UnavailableError) or (isinstance(error, RefusedError) and error.too_long):
            raise RewardError(f"No reward: {error}") from error
        raise error from None
    return [task.result() for task in tasks]


class PlainReward(HTTPReward):
    """{"prompt": text, "messages": [...] or null, "responses": [texts]} -> {"rewards": [numbers]}."""

    path = ""

    def __init__(self, client: Client, *, output: Output = None, target: float | None = None) -> None:
        check(output is None, f"The reward at {client.address} has one output: leave output out.")
        super().__init__(client, target=target)

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        return {"prompt": prompt.text, "messages": prompt.messages, "responses": [r.text for r in responses]}

    def read(self, answer: Any) -> list[float]:
        return list(answer["rewards"])


class RerankReward(PlainReward):
    """text-embeddings-inference's /rerank: how well each response fits the prompt, which is the messages' contents."""

    path = "/rerank"

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        query = prompt.text if prompt.messages is None else "\n\n".join(m["content"] for m in prompt.messages)
        return {"query": query, "texts": [r.text for r in responses], "raw_scores": True}

    def read(self, answer: Any) -> list[float]:
        return [rank["score"] for rank in sorted(answer, key=lambda rank: int(rank["index"]))]


class PredictReward(HTTPReward):
    """text-embeddings-inference's /predict: the raw score of a label (`output`) for the text of prompt and response."""

    path = "/predict"

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        return {"inputs": [[prompt.text + r.text] for r in responses], "raw_scores": True}

    def read(self, answer: Any) -> list[float]:
        return [self._chosen({label["label"]: label["score"] for label in labels}) for labels in answer]

    def _chosen(self, scores: Mapping[str, float]) -> float:
        if self.output is None and len(scores) == 1:
            return next(iter(scores.values()))
        if self.output is None:
            raise SettingError(
                f"The reward at {self.name} has {len(scores)} labels: {', '.join(scores)}. Choose one (output=...)."
            )
        if not isinstance(self.output, str) or self.output not in scores:
            raise UnknownNameError("reward label", str(self.output), scores)
        return scores[self.output]


SHAPES: Mapping[str, type[HTTPReward]] = {"rerank": RerankReward, "predict": PredictReward}

"""Rewards on HTTP servers, in the formats of text-embeddings-inference or in plain JSON."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RejectedRequestError
from cards.errors import RewardError, UnavailableError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward

if TYPE_CHECKING:
    from cards.backends.classifier import Output

BATCH = 32  # texts per request, the default limit of text-embeddings-inference


class HTTPReward(Reward, ABC):
    """A reward that sends at most BATCH texts per request to a server. Raises RewardError if the server does not score them."""

    path: str

    def __init__(self, client: Client, *, output: Output = None, target: float | None = None) -> None:
        self.client, self.output, self.target, self.parts = client, output, target, (client,)
        self.name = client.address + self.path

    @abstractmethod
    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        """Return the JSON body of a request."""

    @abstractmethod
    def read(self, reply: Any) -> list[float]:
        """Return the scores of a reply, in the order of the responses."""

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        batches = [responses[i : i + BATCH] for i in range(0, len(responses), BATCH)]
        replies = await post_all(self.client, self.path, [self.body(prompt, batch) for batch in batches])
        scores: list[float] = []
        for reply, batch in zip(replies, batches, strict=True):
            try:
                batch_scores = [float(score) for score in self.read(reply)]
            except (KeyError, TypeError, ValueError) as error:
                raise unexpected_reply(self.name, reply) from error
            if len(batch_scores) != len(batch):
                raise RewardError(f"The reward at {self.name} gave {len(batch_scores)} scores for {len(batch)} responses.")
            scores += batch_scores
        return scores


def unexpected_reply(address: str, reply: Any) -> RewardError:
    """Return the error for a reply in another format than expected."""
    return RewardError(f"The reward at {address} replied in an unknown format, got {str(reply)[:200]}")


async def post_all(client: Client, path: str, bodies: Sequence[Any]) -> list[Any]:
    """Return the replies to simultaneous requests. Raises RewardError if the server is not available or rejects a request."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.post(path, body)) for body in bodies]
    except ExceptionGroup as errors:
        error = errors.exceptions[0]
        if isinstance(error, UnavailableError | RejectedRequestError):
            raise RewardError(f"The reward could not be computed: {error}") from error
        raise error from None
    return [task.result() for task in tasks]


class PlainReward(HTTPReward):
    """Plain JSON: {"prompt": text, "messages": [...] or null, "responses": [texts]} -> {"rewards": [numbers]}."""

    path = ""

    def __init__(self, client: Client, *, output: Output = None, target: float | None = None) -> None:
        check(output is None, f"The reward at {client.address} has only one output. Leave output out, got {output!r}.")
        super().__init__(client, target=target)

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        texts = [prompt.begun + r.text for r in responses]
        return {"prompt": prompt.text.removesuffix(prompt.begun), "messages": prompt.messages, "responses": texts}

    def read(self, reply: Any) -> list[float]:
        return list(reply["rewards"])


class RerankReward(PlainReward):
    """The /rerank format of text-embeddings-inference. The query is the contents of the messages, or the text of the prompt."""

    path = "/rerank"

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        query = prompt.text if prompt.messages is None else "\n\n".join(m["content"] for m in prompt.messages)
        return {"query": query, "texts": [prompt.begun + r.text for r in responses], "raw_scores": True}

    def read(self, reply: Any) -> list[float]:
        return [rank["score"] for rank in sorted(reply, key=lambda rank: int(rank["index"]))]


class PredictReward(HTTPReward):
    """The /predict format of text-embeddings-inference: the raw score of a label (`output`) for prompt + response."""

    path = "/predict"

    def body(self, prompt: Prompt, responses: Sequence[Response]) -> dict[str, Any]:
        return {"inputs": [[prompt.text + r.text] for r in responses], "raw_scores": True}

    def read(self, reply: Any) -> list[float]:
        return [self._score({label["label"]: label["score"] for label in labels}) for labels in reply]

    def _score(self, scores: Mapping[str, float]) -> float:
        if self.output is None and len(scores) == 1:
            return next(iter(scores.values()))
        if self.output is None:
            raise RewardError(
                f"The reward at {self.name} has {len(scores)} labels: {', '.join(scores)}. Choose one (output=...)."
            )
        if not isinstance(self.output, str) or self.output not in scores:
            raise RewardError(f"The reward at {self.name} has no label {self.output!r}. Its labels: {', '.join(scores)}.")
        return scores[self.output]


TEI_REWARDS: Mapping[str, type[HTTPReward]] = {"rerank": RerankReward, "predict": PredictReward}

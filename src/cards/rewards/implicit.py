"""Implicit rewards: how much likelier a tuned LM finds an answer than the LM before tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cards.engines.base import Engine
from cards.errors import MismatchError, SettingError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.engines import as_engine, in_tokens_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weights = Literal["sum", "inverse", "mean"]
KEPT = 2**17  # tokens of scored texts whose sums are kept


class ImplicitReward(Reward):
    """beta sum_k w_k (log pi_tuned(y_k | x, y_<k) - log pi_untuned(y_k | x, y_<k)); the empty answer has 0, as has what both
    models find equally likely, which is the target unless another is set.

    With w_k = 1 (`sum`) and `tuned` trained by DPO at this beta from `untuned`, it is the reward that DPO fitted, up to a
    term of the prompt alone (arXiv 2305.18290). `inverse` is w_k = 1/k, k from 1, which TreeBoN uses on incomplete answers
    (arXiv 2410.16033); `mean` is 1 / number of tokens. The models are engines of its own, or their names, of one
    tokenizer. Of a text that begins as one that was scored before, both read only what is new.
    """

    kind: ClassVar[str] = "implicit"

    def __init__(
        self,
        tuned: str | Engine,
        untuned: str | Engine,
        beta: float = 1.0,
        *,
        weights: Weights = "sum",
        target: float | None = 0.0,
        **options: Any,
    ) -> None:
        check(beta > 0, f"beta must be positive, not {beta}.")
        check(weights in ("sum", "inverse", "mean"), f"weights must be 'sum', 'inverse' or 'mean', not {weights!r}.")
        self.tuned, self.untuned = as_engine(tuned, **options), as_engine(untuned, **options)
        if self.tuned.vocabulary != self.untuned.vocabulary:
            raise MismatchError(
                f"An implicit reward compares two models of one tokenizer, and {self.tuned.name!r} has another than "
                f"{self.untuned.name!r}."
            )
        self.parts = (self.tuned, self.untuned)
        self.beta, self.weights, self.target = beta, weights, target
        self.context = min(self.tuned.context, self.untuned.context)
        self.name = f"implicit:{self.tuned.name},{self.untuned.name}"
        self.sums = Sums()

    @classmethod
    def named(cls, details: str, **options: Any) -> ImplicitReward:
        """Of `TUNED,UNTUNED`. Raises SettingError."""
        tuned, _, untuned = details.partition(",")
        if not (tuned and untuned):
            raise SettingError(f"An implicit reward is implicit:TUNED,UNTUNED with two models, got {details!r}.")
        return cls(tuned, untuned, **options)

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        prompt, responses = in_tokens_of(self.tuned, prompt, responses)
        return await asyncio.gather(*(self._rate(prompt, response) for response in responses))

    async def rate_next(self, prompt: Prompt, response: Response, followers: Sequence[Response]) -> Sequence[float]:
        if prompt.vocabulary != self.tuned.vocabulary:
            return await self.rate(prompt, followers)
        before, tuned, untuned = await asyncio.gather(
            self._sum(prompt, response), self.tuned.logits(prompt, response), self.untuned.logits(prompt, response)
        )
        count = len(response.token_ids)
        tokens = [follower.token_ids[-1] for follower in followers]
        gains = self._weights(count, 1) * (log_softmax(tuned[0])[tokens] - log_softmax(untuned[0])[tokens])
        for i, follower in enumerate(followers):
            self.sums.add(prompt.token_ids, follower.token_ids, before + gains[i : i + 1])
        return [self._scaled(before + gain, count + 1) for gain in gains.tolist()]

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        return self._scaled(await self._sum(prompt, response), len(response.token_ids))

    async def _sum(self, prompt: Prompt, response: Response) -> float:
        ids = response.token_ids
        known, total = self.sums.longest(prompt.token_ids, ids)
        if new := len(ids) - known:
            tuned, untuned = await asyncio.gather(
                self.tuned.logprobs(prompt, response, new), self.untuned.logprobs(prompt, response, new)
            )
            sums = total + (self._weights(known, new) * (tuned - untuned)).cumsum()
            self.sums.add(prompt.token_ids, ids, sums)
            total = float(sums[-1])
        return total

    def _weights(self, before: int, count: int) -> NDArray[np.float64]:
        """For the `count` tokens after position `before`, [count]."""
        import numpy as np

        return 1 / np.arange(before + 1, before + count + 1) if self.weights == "inverse" else np.ones(count)

    def _scaled(self, total: float, count: int) -> float:
        return self.beta * total / (max(count, 1) if self.weights == "mean" else 1)

    def forget(self) -> None:
        self.sums.forget()
        super().forget()


class Sums:
    """A sum after each token of the texts that were scored: a tree, one node a token. Full, it starts again from nothing."""

    def __init__(self, most: int = KEPT) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        self.roots: dict[tuple[int, ...], int] = {}  # node of a prompt
        self.children: dict[tuple[int, int], int] = {}  # node after a node and a token
        self.sums = [0.0]  # at each node; node 0 is a prompt that is not known
        self.tokens = 0

    def longest(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, float]:
        """How many leading tokens have a known sum, and the sum after them."""
        count, node = self._walk(prompt, ids)
        return count, self.sums[node]

    def add(self, prompt: tuple[int, ...], ids: tuple[int, ...], sums: NDArray[np.float64]) -> None:
        """Keep the sums after the last tokens of ids, if those before them are kept."""
        if self.tokens + len(prompt) + len(sums) > self.most:
            self.forget()
        first = len(ids) - len(sums)
        if not first and prompt not in self.roots:
            self.roots[prompt] = self._new(0.0, len(prompt))
        count, node = self._walk(prompt, ids)
        if node and count >= first:
            for token, total in zip(ids[count:], sums[count - first :].tolist(), strict=True):
                child = self._new(total, 1)
                self.children[node, token] = child
                node = child

    def _walk(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, int]:
        node = self.roots.get(prompt, 0)
        for count, token in enumerate(ids):
            if (child := self.children.get((node, token))) is None:
                return count, node
            node = child
        return len(ids) if node else 0, node

    def _new(self, total: float, tokens: int) -> int:
        self.sums.append(total)
        self.tokens += tokens
        return len(self.sums) - 1


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-probabilities [..., vocabulary] of logits of the same shape."""
    import numpy as np

    logits = np.asarray(logits, np.float64) - logits.max()
    return np.asarray(logits - np.log(np.exp(logits).sum()), np.float64)

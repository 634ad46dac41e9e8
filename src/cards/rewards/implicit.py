"""Implicit rewards: the log-ratio of response probabilities under a tuned LM and the LM before tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cards.engines.base import Engine
from cards.errors import MismatchError, SettingError, check
from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.rewards.engines import as_engine, retokenize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Weights = Literal["sum", "inverse", "mean"]
CACHE_TOKENS = 2**17  # capacity of the cache of prefix sums


class ImplicitReward(Reward):
    """The reward beta sum_k w_k (log pi_tuned(y_k | x, y_<k) - log pi_untuned(y_k | x, y_<k)).

    It is 0 for the empty response and wherever the models agree; 0 is the default target. The weights are:

    - `sum`: w_k = 1. If DPO at this beta trained `tuned` from `untuned`, this is the reward that DPO fitted, up to a term
      that depends on the prompt alone (arXiv 2305.18290).
    - `inverse`: w_k = 1/k for k >= 1, used by TreeBoN for incomplete responses (arXiv 2410.16033).
    - `mean`: w_k = 1 / number of tokens.

    The models are engines or names, and must share a tokenizer. They read only the tokens after the longest prefix scored
    before. Raises SettingError, or MismatchError if the tokenizers differ.
    """

    kind: ClassVar[str] = "implicit"
    one_tokenizer: ClassVar[bool] = True

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
        check(beta > 0, f"beta must be positive, got {beta}.")
        check(weights in ("sum", "inverse", "mean"), f"weights must be 'sum', 'inverse' or 'mean', got {weights!r}.")
        self.tuned, self.untuned = as_engine(tuned, **options), as_engine(untuned, **options)
        if self.tuned.vocabulary != self.untuned.vocabulary:
            raise MismatchError(
                f"An implicit reward needs two models with the same tokenizer, got {self.tuned.name!r} and "
                f"{self.untuned.name!r}, whose tokenizers differ."
            )
        self.parts = (self.tuned, self.untuned)
        self.beta, self.weights, self.target = beta, weights, target
        self.context = min(self.tuned.context, self.untuned.context)
        self.name = f"implicit:{self.tuned.name},{self.untuned.name}"
        self.prefix_sums = PrefixSums()

    @classmethod
    def named(cls, details: str, *, beta: float = 1.0, **options: Any) -> ImplicitReward:
        """Return the reward for `TUNED,UNTUNED`, the names of two LMs. Raises SettingError."""
        tuned, _, untuned = details.partition(",")
        if not (tuned and untuned):
            raise SettingError(f"An implicit reward is named implicit:TUNED,UNTUNED with two models, got {details!r}.")
        return cls(tuned, untuned, beta, **options)

    @classmethod
    def models_in(cls, details: str) -> list[tuple[str, str]]:
        return [(name, "engine") for name in details.split(",") if name]

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        prompt, responses = retokenize(self.tuned, prompt, responses)
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
            self.prefix_sums.add(prompt.token_ids, follower.token_ids, before + gains[i : i + 1])
        return [self._scaled(before + gain, count + 1) for gain in gains.tolist()]

    async def _rate(self, prompt: Prompt, response: Response) -> float:
        return self._scaled(await self._sum(prompt, response), len(response.token_ids))

    async def _sum(self, prompt: Prompt, response: Response) -> float:
        ids = response.token_ids
        known, total = self.prefix_sums.longest(prompt.token_ids, ids)
        if new := len(ids) - known:
            tuned, untuned = await asyncio.gather(
                self.tuned.logprobs(prompt, response, new), self.untuned.logprobs(prompt, response, new)
            )
            sums = total + (self._weights(known, new) * (tuned - untuned)).cumsum()
            self.prefix_sums.add(prompt.token_ids, ids, sums)
            total = float(sums[-1])
        return total

    def _weights(self, before: int, count: int) -> NDArray[np.float64]:
        """Return the weights [count] of the `count` tokens after the first `before`."""
        import numpy as np

        return 1 / np.arange(before + 1, before + count + 1) if self.weights == "inverse" else np.ones(count)

    def _scaled(self, total: float, count: int) -> float:
        return self.beta * total / (max(count, 1) if self.weights == "mean" else 1)

    def forget(self) -> None:
        self.prefix_sums.forget()
        super().forget()


class PrefixSums:
    """A cache of the sum after each token of the scored texts: a tree with one node per token.

    If more than `capacity` tokens would be stored, the cache is emptied first.
    """

    def __init__(self, capacity: int = CACHE_TOKENS) -> None:
        self.capacity = capacity
        self.forget()

    def forget(self) -> None:
        self.roots: dict[tuple[int, ...], int] = {}  # prompt -> node
        self.children: dict[tuple[int, int], int] = {}  # (node, token) -> node
        self.sums = [0.0]  # by node; node 0 stands for an unknown prompt
        self.tokens = 0

    def longest(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, float]:
        """Return the number of leading tokens with known sums, and the sum after them."""
        count, node = self._walk(prompt, ids)
        return count, self.sums[node]

    def along(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> list[float]:
        """Return the sums after each of the leading tokens with known sums."""
        return [self.sums[node] for node in self._nodes(prompt, ids)]

    def add(self, prompt: tuple[int, ...], ids: tuple[int, ...], sums: NDArray[np.float64]) -> None:
        """Store the sums after the last tokens of `ids`, if those of the tokens before are stored."""
        if self.tokens + len(prompt) + len(sums) > self.capacity:
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

    def _nodes(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> Iterator[int]:
        node = self.roots.get(prompt, 0)
        for token in ids:
            if not (node := self.children.get((node, token), 0)):
                return
            yield node

    def _walk(self, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[int, int]:
        nodes = [self.roots.get(prompt, 0), *self._nodes(prompt, ids)]
        return len(nodes) - 1, nodes[-1]

    def _new(self, total: float, tokens: int) -> int:
        self.sums.append(total)
        self.tokens += tokens
        return len(self.sums) - 1


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the log-probabilities [..., vocabulary] for logits [..., vocabulary]."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)), np.float64)

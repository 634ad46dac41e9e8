"""Confidence: how certain an LM is of the tokens of a response, as a reward."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cards.engines.base import Engine
from cards.engines.reading import read_logits
from cards.errors import MismatchError, check
from cards.events import Prompt, Response
from cards.rewards.engines import EngineReward, retokenize
from cards.rewards.implicit import PrefixSums

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Measure = Literal["self-certainty", "mean", "lowest-group", "tail"]


class ConfidenceReward(EngineReward):
    """The confidence of an LM in a response, from its next-token distributions p_t at temperature 1.

    - `self-certainty`: mean over the tokens of KL(uniform || p_t) (arXiv 2502.18581).
    - `mean`: mean over the tokens of -mean log p_t(v) over the `top` most likely tokens v (DeepConf, arXiv 2508.15260).
    - `lowest-group`: the lowest mean of these values over `window` consecutive tokens; of all tokens if there are fewer.
    - `tail`: their mean over the last `window` tokens.

    Higher is more certain. The empty response has confidence 0. The LM reads only tokens that it has not scored before.
    `model` is a name or an engine, which may be the engine of the decoder. Raises SettingError or MismatchError.
    """

    kind: ClassVar[str] = "confidence"

    def __init__(
        self,
        model: str | Engine,
        *,
        measure: Measure = "self-certainty",
        top: int = 20,
        window: int = 2048,
        target: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, target=target, **options)
        known = ("self-certainty", "mean", "lowest-group", "tail")
        check(measure in known, f"measure must be one of {', '.join(known)}, got {measure!r}.")
        check(top >= 1, f"top must be at least 1 token, got {top}.")
        check(window >= 1, f"window must be at least 1 token, got {window}.")
        if "logits" not in self.model.has:
            raise MismatchError(f"Engine {self.model.name!r} does not provide logits, which its confidence needs.")
        self.measure, self.top, self.window = measure, top, window
        self.prefix_sums = PrefixSums()

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
        prompt, responses = retokenize(self.model, prompt, responses)
        return await asyncio.gather(*(self._rate(prompt, response.token_ids) for response in responses))

    async def _rate(self, prompt: Prompt, ids: tuple[int, ...]) -> float:
        import numpy as np

        sums = [0.0, *self.prefix_sums.along(prompt.token_ids, ids)]
        async for rows in read_logits(self.model, prompt, ids, len(sums) - 1):
            more = sums[-1] + self.of_tokens(rows).cumsum()
            self.prefix_sums.add(prompt.token_ids, ids[: len(sums) - 1 + len(more)], more)
            sums += more.tolist()
        total, count = np.array(sums), max(1, len(ids))
        size = min(self.window, count)
        if self.measure == "tail":
            return float(total[-1] - total[max(0, len(ids) - size)]) / size
        if self.measure == "lowest-group" and ids:
            return float((total[size:] - total[:-size]).min()) / size
        return float(total[-1]) / count

    def of_tokens(self, logits: Floats) -> Floats:
        """Return the confidence at each token, from the logits [tokens, vocabulary] before it."""
        import numpy as np

        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        log_p = np.maximum(log_p, math.log(sys.float_info.min))  # of tokens that a mixture excludes
        if self.measure == "self-certainty":
            return np.asarray(-log_p.mean(axis=1) - math.log(log_p.shape[1]))
        top = min(self.top, log_p.shape[1])
        return np.asarray(-np.partition(log_p, -top, axis=1)[:, -top:].mean(axis=1))

    def forget(self) -> None:
        self.prefix_sums.forget()
        super().forget()

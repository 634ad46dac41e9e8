"""Reading of a response by the LM: the logits before each of its tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.sampling import valid_logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOKENS = 64  # read at a time, because a row of logits has as many numbers as the vocabulary


async def read_logits(
    engine: Engine, prompt: Prompt, token_ids: Sequence[int], start: int = 0
) -> AsyncGenerator[NDArray[np.float64], None]:
    """Yield the raw logits [n, vocabulary] of the LM before the next n tokens of a response, from token `start` on."""
    import numpy as np

    for first in range(start, len(token_ids), TOKENS):
        read = token_ids[: min(first + TOKENS, len(token_ids)) - 1]
        rows = await engine.logits(prompt, Response(token_ids=tuple(read)), len(read) + 1 - first)
        yield np.stack([valid_logits(row, at) for at, row in enumerate(rows, first)])

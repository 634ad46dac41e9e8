"""Tokens that a model never writes, whatever a request asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", bound="np.floating[Any]")


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Tokens whose probability is 0 in every proposal of an engine.

    `always` are excluded everywhere, `first` as the first token of a response. `sequences` of several tokens are never
    completed, also where the prompt begins them. Logits that rewards and boundaries read stay as they are.
    """

    always: tuple[int, ...] = ()
    first: tuple[int, ...] = ()
    sequences: tuple[tuple[int, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.always or self.first or self.sequences)

    def after(self, tokens: Sequence[int], position: int) -> list[int]:
        """Return the excluded ids after these tokens of prompt and response. `position` counts the response's."""
        found = [*self.always, *(self.first if position == 0 else ())]
        for *beginning, last in self.sequences:
            if len(tokens) >= len(beginning) and list(tokens[len(tokens) - len(beginning) :]) == beginning:
                found.append(last)
        return found

    def masked(self, logits: NDArray[Number], tokens: Sequence[int], position: int) -> NDArray[Number]:
        """Return the logits [vocabulary] with -inf for the excluded tokens."""
        import numpy as np

        if not (ids := [token for token in self.after(tokens, position) if token < len(logits)]):
            return logits
        logits = logits.copy()
        logits[ids] = -np.inf
        return logits

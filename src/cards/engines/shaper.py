"""Shapers, which apply the shaping of a request to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cards.shaping import Shaping

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cards.engines.matcher import TokenGrammar


class Shaper:
    """The shaping of one request: see `Shaping` for the formulas. `grammar` is its grammar over the tokens of the LM.

    `thought` are the tokens at the end of the prompt that belong to the response. Penalties count them, and the grammar begins
    after them.
    """

    def __init__(
        self,
        shaping: Shaping,
        penalty: float,
        prompt: Sequence[int],
        grammar: TokenGrammar | None,
        thought: Sequence[int] = (),
    ) -> None:
        self.shaping, self.penalty, self.grammar, self.thought = shaping, penalty, grammar, tuple(thought)
        self.prompt = frozenset(prompt) if penalty != 1 else frozenset[int]()

    def edit(self, row: Any, tokens: Sequence[int]) -> None:
        """Shape the logits [vocabulary] of the token after a response, in place; an array or a tensor of floats.

        Raises SettingError as `mask` does.
        """
        shaping = self.shaping
        for token, bias in shaping.logit_bias:
            if token < len(row):
                row[token] += bias
        if self.penalty != 1:
            ids = [token for token in sorted(self.prompt.union(tokens)) if token < len(row)]
            values = row[ids]
            positive = values > 0
            values[positive] /= self.penalty
            values[~positive] *= self.penalty
            row[ids] = values
        if shaping.frequency_penalty or shaping.presence_penalty:
            for count, ids in by_count((*self.thought, *tokens)).items():
                row[ids] -= shaping.frequency_penalty * count + shaping.presence_penalty
        self.mask(row, tokens)

    def mask(self, row: Any, tokens: Sequence[int]) -> None:
        """Exclude the tokens that the grammar does not allow, in place. Raises SettingError if it allows none."""
        if self.grammar is not None:
            allowed = self.grammar.allowed(tokens)
            row[len(allowed) :] = float("-inf")
            row[: len(allowed)][~allowed[: len(row)]] = float("-inf")

    def shaped(self, row: NDArray[np.floating[Any]], tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return the logits [vocabulary] of the token after a response, shaped. Raises SettingError."""
        import numpy as np

        edited: NDArray[np.float64] = np.array(row, np.float64)
        self.edit(edited, tokens)
        return edited

    def ends(self, tokens: Sequence[int]) -> bool:
        """Return whether a response must end after these tokens, because the grammar is complete."""
        return self.grammar is not None and self.grammar.after(tokens).must_end


def by_count(tokens: Sequence[int]) -> dict[int, list[int]]:
    """Return the distinct tokens by the number of their occurrences."""
    from collections import Counter

    found: dict[int, list[int]] = {}
    for token, count in Counter(tokens).items():
        found.setdefault(count, []).append(token)
    return found

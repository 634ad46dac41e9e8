"""Prompt lookup: speculative decoding whose drafts are copied from the text, without a draft model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cards.engines.base import Engine
from cards.engines.speculative import SpeculativeEngine
from cards.engines.writer import Writer
from cards.errors import SettingError, check
from cards.usage import booked_as, current_account

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NAME = "ngram"


class PromptLookupEngine(SpeculativeEngine):
    """An engine that samples from `target` in fewer steps, with drafts copied from prompt and response.

    The last tokens of the text are searched for earlier in the text, from `longest` tokens down to one. The draft is up to
    `gamma` tokens after a match; without a match, the target draws a token alone. A drafted token is certain, so it
    is accepted with probability p(token), and the law is exactly that of the target (see SpeculativeEngine). It saves steps
    where the response repeats the prompt, as in summaries, edits and quotes. Raises MismatchError without logits, and
    SettingError.
    """

    def __init__(self, target: Engine, gamma: int = 4, longest: int = 3) -> None:
        check(longest >= 1, f"longest must be at least 1 token, got {longest}.")
        super().__init__(target, target, gamma)
        self.parts, self.longest = (target,), longest

    @classmethod
    def named(cls, name: str, target: Engine, gamma: int) -> PromptLookupEngine:
        """Return the engine for `ngram` or `ngram:N`, the longest match in tokens. Raises SettingError."""
        _, colon, count = name.partition(":")
        if colon and not count.isdecimal():
            raise SettingError(f"The draft ngram:N needs a number of tokens, such as ngram:3, got {count!r}.")
        return cls(target, gamma, int(count)) if colon else cls(target, gamma)

    async def _drafted(self, writer: Writer, most: int, u: Floats) -> tuple[list[int], list[Floats]]:
        import numpy as np

        text = (*writer.ask.prompt.token_ids, *writer.response_ids())
        tokens: list[int] = []
        q: list[Floats] = []
        for token in continuation(text, self.longest, min(self.gamma, most)):
            if writer.ends_with(tokens) or not self._allows(writer, tokens, token):
                break
            certain = np.zeros(token + 1)
            certain[token] = 1.0
            tokens.append(token)
            q.append(certain)
        with booked_as("draft"):
            current_account().add(decoded_tokens=len(tokens))
        return tokens, q

    @staticmethod
    def _allows(writer: Writer, before: Sequence[int], token: int) -> bool:
        """Return whether the grammar of the request allows the token after the tokens `before` of a draft."""
        if writer.shaper is None or writer.shaper.grammar is None:
            return True
        allowed = writer.shaper.grammar.allowed(writer.response_ids(before))
        return token < len(allowed) and bool(allowed[token])


def is_lookup(name: str) -> bool:
    """Return whether this is the name of drafts without a model."""
    return name.partition(":")[0] == NAME


def continuation(text: Sequence[int], longest: int, most: int) -> list[int]:
    """Return up to `most` tokens after an earlier occurrence of the longest possible end of the text.

    Of several occurrences it is the one that more tokens follow, up to `most`, and then the latest.
    """
    best, after = (0, 0), len(text)
    for i in range(len(text) - 2, -1, -1) if most > 0 else ():
        if text[i] == text[-1]:
            length = 1
            while length < min(longest, i + 1) and text[i - length] == text[-1 - length]:
                length += 1
            if (found := (length, min(most, len(text) - 1 - i))) > best:
                best, after = found, i + 1
    return list(text[after : after + most])

"""Writers, which turn the tokens of a candidate into a segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cards.engines.ask import Ask
from cards.engines.detokenizer import Detokenizer, TokenDecoder
from cards.engines.text import find_stop, hold_back
from cards.events import FinishReason, Segment
from cards.usage import current_account

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cards.engines.shaper import Shaper


class Writer:
    """Collects the tokens of one candidate of an ask. `segment` is set when a token ends the segment or the response.

    `limit` is the maximum number of tokens by the ask and the context; `most` also includes the maximum of the boundary.
    `shaper` applies the shaping of the ask, if there is any.
    """

    def __init__(
        self, ask: Ask, tokenizer: TokenDecoder, end_ids: frozenset[int], context: int, shaper: Shaper | None = None
    ) -> None:
        self.ask, self.end_ids, self.shaper = ask, end_ids, shaper
        self.tokens: list[int] = []
        self.segment: Segment | None = None
        prefix = [*ask.prompt.token_ids, *ask.response.token_ids]
        self.limit = min(ask.max_tokens, context - len(prefix))
        self.most = self.limit if ask.boundary.maximum is None else min(self.limit, ask.boundary.maximum)
        self._text = Detokenizer(tokenizer, prefix, end_ids)
        self._text.text = ask.response.held  # it may start a stop string
        self._before = len(ask.response.held)
        self._eager = bool(ask.stop) or ask.boundary.reads_text
        self._starts: list[int] = []  # position of each token in the text

    @property
    def position(self) -> int:
        """Number of the next token in the response, from 0."""
        return len(self.ask.response.token_ids) + len(self.tokens)

    def shaped(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Return the logits [vocabulary] of the next token as the ask shapes them."""
        return logits if self.shaper is None else self.shaper.shaped(logits, self.response_ids())

    def ends_with(self, ahead: Sequence[int]) -> bool:
        """Return whether an end token among the tokens `ahead`, or a grammar that they complete, ends the response."""
        if not self.end_ids.isdisjoint(ahead):
            return True
        return self.shaper is not None and self.shaper.ends(self.response_ids(ahead))

    def response_ids(self, ahead: Sequence[int] = ()) -> list[int]:
        """Return the tokens of the response so far, with these tokens ahead."""
        return [*self.ask.response.token_ids, *self.tokens, *ahead]

    def choose(self, token: int) -> None:
        """Add a token that the caller drew from logits, and count it as decoded."""
        current_account().add(decoded_tokens=1)
        self.push(token)

    def push(self, token: int) -> None:
        """Add a token. End the segment if the token ends it or the response."""
        self.tokens.append(token)
        ask, count = self.ask, len(self.tokens)
        searched = len(self._text.text)
        self._starts.append(searched)
        text = self._text.push([token]) if self._eager else ""
        if token in self.end_ids:
            self.end("stop")
        elif ask.stop and (at := find_stop(text, ask.stop, searched)) is not None:
            self.tokens = self.tokens[: sum(start < at for start in self._starts)]  # tokens that contribute to the text
            self.segment = Segment(text[:at], tuple(self.tokens), finish_reason="stop")
        elif self.shaper is not None and self.shaper.ends(self.response_ids()):
            self.end("stop")
        elif count == self.limit:
            self.end("length")
        elif count == ask.boundary.maximum or (
            ask.boundary.reads_text and count >= ask.boundary.minimum and ask.boundary.ends_after(text[self._before :])
        ):
            self.end()

    def end(self, reason: FinishReason | None = None, *, entropy: float | None = None, end_token: int | None = None) -> None:
        """End the segment. `entropy` is the uncertainty of the next token. `end_token` ended the response and has no text."""
        if not self._eager:
            self._text.push(self.tokens)
        text = self._text.finish() if reason else self._text.text
        shown = text if reason else hold_back(text, self.ask.stop)
        self.tokens += [] if end_token is None else [end_token]
        self.segment = Segment(shown, tuple(self.tokens), entropy, reason, held=text[len(shown) :])


def make_segment(tokenizer: TokenDecoder, end_ids: frozenset[int], before: Sequence[int], token_ids: Sequence[int]) -> Segment:
    """Return the segment of these tokens after the tokens `before`."""
    text = Detokenizer(tokenizer, before, end_ids)
    text.push(token_ids)
    ends = bool(token_ids) and token_ids[-1] in end_ids
    return Segment(text.finish() if ends else text.text, tuple(token_ids), finish_reason="stop" if ends else None)

"""Incremental decoding of tokens: every part of a text is final when it is emitted, and the parts join to the whole text."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cards.token_bytes import byte_reader

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 8  # number of preceding tokens that decide on the spaces of a token's text, or hold the bytes of a character
UTF8 = getincrementaldecoder("utf-8")


class TokenDecoder(Protocol):
    """A tokenizer that can decode tokens."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ..., **options: Any) -> Any:
        """Return the text of tokens."""
        ...


class Detokenizer:
    """Decodes tokens incrementally after the tokens `context`. Tokens in `silent` have no text; special tokens have one.

    A token is either text or bytes. The text is what `decode` adds to the text of the preceding tokens. Bytes are decoded as
    UTF-8: an incomplete character is held back, and invalid bytes become replacement characters without effect on other tokens.
    So the texts of consecutive parts join to the text of all tokens, wherever they are cut.
    """

    def __init__(self, tokenizer: TokenDecoder, context: Sequence[int], silent: frozenset[int] = frozenset()) -> None:
        self.tokenizer, self.silent = tokenizer, silent
        self.text = ""
        self._name: Callable[[int], str | None] = getattr(tokenizer, "convert_ids_to_tokens", str)
        reader = byte_reader(tokenizer)
        self._binary, self._bytes = reader is not None, reader or (lambda token: None)
        self._utf8 = UTF8("replace")
        self._context: list[int] = []
        for token in reversed(context):
            if self._name(token) is not None:
                self._context.insert(0, token)
            if len(self._context) == CONTEXT:
                break
        for token in self._context:  # so that the bytes of a character that the context begins are not lost
            self._utf8.decode(self._bytes(token) or b"", final=self._bytes(token) is None)

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens and return the text so far."""
        new, run = list[str](), list[int]()  # run: consecutive tokens of text
        for token in token_ids:
            if token in self.silent or self._name(token) is None:  # ids beyond the vocabulary have no text
                continue
            data = self._bytes(token)
            if data is None or (not self._context and _is_whole(data)):  # tokenizers may drop a space at the start of a text
                run.append(token)
                continue
            new += [self._added(run), self._utf8.decode(data)]
            run = []
            self._context = [*self._context[1 - CONTEXT :], token]
        new.append(self._added(run))
        self.text += "".join(new)
        return self.text

    def finish(self) -> str:
        """Return the text, with a replacement character for an incomplete character at the end."""
        held = self._utf8.getstate()[0].decode(errors="replace")
        return self.text + (held or self._decode(self._context)[len(self._final(self._context)) :])

    def _added(self, run: list[int]) -> str:
        """Return the text that consecutive tokens of text add, after that of the bytes held back before them."""
        if not run:
            return ""
        after = [*self._context, *run]
        added = self._final(after)[len(self._final(self._context)) :]
        self._context = after[-CONTEXT:]
        return self._utf8.decode(b"", final=True) + added

    def _final(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens that further tokens cannot change."""
        text = self._decode(tokens)
        return text if self._binary else text.removesuffix(UNFINISHED)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _is_whole(data: bytes) -> bool:
    """Return whether bytes are complete characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

"""Incremental decoding of tokens: every part of a text is final when it is emitted, and the parts join to the whole text."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

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
        self._to_bytes = byte_reader(tokenizer)
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
            if data is None or (data.isascii() and not self._context):  # tokenizers may drop a space at the start of a text
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
        return text if self._to_bytes else text.removesuffix(UNFINISHED)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _bytes(self, token: int) -> bytes | None:
        return self._to_bytes(self._name(token) or "") if self._to_bytes else None


ByteReader = Callable[[str], bytes | None]  # name of a token -> its bytes, or None for text
_readers: WeakKeyDictionary[TokenDecoder, ByteReader | None] = WeakKeyDictionary()


def byte_reader(tokenizer: TokenDecoder) -> ByteReader | None:
    """Return the function that reads the bytes of a token from its name, or None if all tokens are text.

    Byte-level BPE writes every byte as a character. With byte fallback, some tokens are called <0x00> to <0xFF>.
    """
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return None
    if tokenizer not in _readers:
        samples = ((byte_level, "\u0120", " "), (byte_fallback, "<0x41>", "A"))  # names of tokens and their texts
        fitting = [reader for reader, name, text in samples if _text_of(tokenizer, name) == text]
        _readers[tokenizer] = fitting[0] if fitting else None
    return _readers[tokenizer]


def _text_of(tokenizer: Any, name: str) -> str | None:
    token = tokenizer.convert_tokens_to_ids(name)
    return None if token is None else tokenizer.decode([token], clean_up_tokenization_spaces=False)


def byte_level(name: str) -> bytes:
    """Return the bytes of a token of byte-level BPE. A name with other characters stands for itself."""
    data = [BYTE_OF.get(character) for character in name]
    return name.encode() if None in data else bytes(data)  # type: ignore[arg-type]


def byte_fallback(name: str) -> bytes | None:
    """Return the byte that a token such as <0x0A> stands for, or None for a token of text."""
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", name)
    return bytes.fromhex(match[1]) if match else None


PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # bytes whose character is that of their number
OTHER = (byte for byte in range(0x100) if byte not in PRINTABLE)
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(OTHER)}

"""The bytes that tokens stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

NameReader = Callable[[str], bytes | None]  # name of a token -> its bytes, or None for text
ByteReader = Callable[[int], bytes | None]  # the same for an id
SPACE = "\u2581"  # a space in the names of SentencePiece
_readers: WeakKeyDictionary[Any, NameReader | None] = WeakKeyDictionary()


def byte_reader(tokenizer: Any) -> ByteReader | None:
    """Return the function from a token to its bytes (None for a token of text), or None if all tokens are text.

    A tokenizer with a method `token_bytes` says so itself. Otherwise the names of tokens decide: byte-level BPE writes every
    byte as a character, and with byte fallback some tokens are called <0x00> to <0xFF>.
    """
    if hasattr(tokenizer, "token_bytes"):
        return tokenizer.token_bytes  # type: ignore[no-any-return]
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return None
    if tokenizer not in _readers:
        samples = ((byte_level, "\u0120", " "), (byte_fallback, "<0x41>", "A"))  # names of tokens and their texts
        fitting = [reader for reader, name, text in samples if _text_of(tokenizer, name) == text]
        _readers[tokenizer] = fitting[0] if fitting else None
    reader = _readers[tokenizer]
    return None if reader is None else partial(_read, tokenizer, reader)


def all_bytes(tokenizer: Any, count: int) -> Iterator[bytes]:
    """Yield the bytes of the tokens below `count`; for a token of text, those of its name with spaces."""
    reader = byte_reader(tokenizer)
    for token in range(count):
        data = reader(token) if reader else None
        yield (tokenizer.convert_ids_to_tokens(token) or "").replace(SPACE, " ").encode() if data is None else data


def _read(tokenizer: Any, reader: NameReader, token: int) -> bytes | None:
    return reader(tokenizer.convert_ids_to_tokens(token) or "")


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

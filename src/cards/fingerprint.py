"""Fingerprints of tokenizers: models with equal fingerprints can share token ids."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, cast

from cards.token_bytes import all_bytes
from cards.tokenizer import PairTokenizer, Tokenizer


class Fingerprint:
    """The identity of a tokenizer. Tokenizers with equal fingerprints assign the same ids to the same text.

    Tokenizers from files with equal hashes are equal. Otherwise a hash of the vocabulary, its rules and its special tokens is
    compared. It takes seconds for a large vocabulary, so it is computed at the first such comparison and cached. The rules of
    a GGUF file are part of llama.cpp, so such a tokenizer is compared with others by the bytes that all ids stand for. Special
    tokens that only one of the two has after all others make no difference.
    """

    def __init__(self, tokenizer: Tokenizer, file: str | None = None) -> None:
        self.file, self.size = file, len(tokenizer)
        self.tokenizer: Any = tokenizer
        self.is_gguf = hasattr(tokenizer, "token_bytes")
        self._tables: dict[int, str] = {}

    @cached_property
    def canonical(self) -> str:
        """A hash of the state that determines the ids of a text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state: Any = json.loads(backend.to_str()) if backend is not None else sorted(self.tokenizer.get_vocab().items())
        if isinstance(state, dict):
            state |= {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def table(self, count: int) -> str:
        """Return a hash of the bytes that the ids below `count` stand for."""
        if count not in self._tables:
            pieces = hashlib.sha256()
            for piece in all_bytes(self.tokenizer, count):
                pieces.update(len(piece).to_bytes(4, "big") + piece)
            self._tables[count] = pieces.hexdigest()
        return self._tables[count]

    def is_special(self, token: int) -> bool:
        """Return whether a token is special, or unused."""
        tokenizer = cast(PairTokenizer, self.tokenizer)
        added = tokenizer.added_tokens_decoder.get(token)
        return token in tokenizer.all_special_ids or (added is not None and added.special)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self is other or (self.file is not None and self.file == other.file and self.size == other.size):
            return True
        if not (self.is_gguf or other.is_gguf):
            return self.size == other.size and self.canonical == other.canonical
        short, long = sorted((self, other), key=lambda one: one.size)
        extra = range(short.size, long.size)
        return all(map(long.is_special, extra)) and short.table(short.size) == long.table(short.size)

    def __hash__(self) -> int:
        return hash(Fingerprint)


def fingerprint(tokenizer: Tokenizer) -> Fingerprint:
    """Return the fingerprint of a tokenizer, computed once."""
    known = getattr(tokenizer, "_cards_fingerprint", None)
    if known is None:
        known = Fingerprint(tokenizer, getattr(tokenizer, "_cards_file", None))
        tokenizer._cards_fingerprint = known  # type: ignore[attr-defined]
    return cast(Fingerprint, known)

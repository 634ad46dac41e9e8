"""Fingerprints of tokenizers: models with equal fingerprints can share token ids."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, cast

from cards.tokenizer import Tokenizer


class Fingerprint:
    """The identity of a tokenizer. Tokenizers with equal fingerprints assign the same ids to the same text.

    Tokenizers from files with equal hashes are equal. Otherwise a hash of the vocabulary, its rules and its special tokens is
    compared. It takes seconds for a large vocabulary, so it is computed at the first such comparison and cached.
    """

    def __init__(self, tokenizer: Tokenizer, file: str | None = None) -> None:
        self.tokenizer, self.file, self.size = tokenizer, file, len(tokenizer)

    @cached_property
    def canonical(self) -> str:
        """A hash of the state that determines the ids of a text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state: Any = json.loads(backend.to_str()) if backend is not None else sorted(self.tokenizer.get_vocab().items())
        if isinstance(state, dict):
            state |= {"padding": None, "truncation": None}
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self is other or (self.file is not None and self.file == other.file and self.size == other.size):
            return True
        return self.size == other.size and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.size)


def fingerprint(tokenizer: Tokenizer) -> Fingerprint:
    """Return the fingerprint of a tokenizer, computed once."""
    known = getattr(tokenizer, "_cards_fingerprint", None)
    if known is None:
        known = Fingerprint(tokenizer, getattr(tokenizer, "_cards_file", None))
        tokenizer._cards_fingerprint = known  # type: ignore[attr-defined]
    return cast(Fingerprint, known)

"""The tokenizer of a GGUF file, with the parts of the interface of transformers' tokenizers that this package uses."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from cards.backends.chat_template import render
from cards.backends.llamacpp.library import library
from cards.errors import ModelError

SPM, UGM = 1, 4  # types of vocabularies whose decoder removes the space that the encoder adds at the start of a text
UNUSED, CONTROL, USER_DEFINED = 1 << 1, 1 << 3, 1 << 4  # attributes of tokens
SPACE = b" "
PIECE = 256  # bytes; longer pieces are read again


class AddedToken(NamedTuple):
    """A token that is matched in a text before it is tokenized."""

    content: str
    special: bool


class GGUFTokenizer:
    """The vocabulary of a loaded model. Every token stands for bytes, so a text is the decoded bytes of its tokens."""

    def __init__(self, model: Any, metadata: dict[str, str]) -> None:
        self.llama, self.model, self.metadata = library(), model, metadata
        self._vocab = self.llama.llama_model_get_vocab(model)
        self.count: int = self.llama.llama_vocab_n_tokens(self.vocab)
        self.chat_template = self._template()
        self.bos_token_id, self.eos_token_id, self.sep_token_id = (self._id(name) for name in ("bos", "eos", "sep"))
        self.bos_token, self.eos_token = (self.name(i) for i in (self.bos_token_id, self.eos_token_id))
        strips = self.llama.llama_vocab_type(self.vocab) in (SPM, UGM)
        self._strips = strips and metadata.get("tokenizer.ggml.add_space_prefix", "true") == "true"
        self._pieces: dict[int, bytes] = {}

    @property
    def vocab(self) -> Any:
        """The vocabulary of llama.cpp. Raises ModelError if the model is closed, because its memory is free then."""
        if self._vocab is None:
            raise ModelError("The model is closed: load it again to use it.")
        return self._vocab

    def close(self) -> None:
        """Use the vocabulary no longer."""
        self._vocab = None

    def __len__(self) -> int:
        return self.count

    def __call__(self, text: str, pair: str | None = None, /, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Tokenize a text, or a pair of texts with the separators of the model. Special tokens in it are read as such."""
        if pair:
            start, middle, end = self._separators
            first, second = (self(part, add_special_tokens=False)["input_ids"] for part in (text, pair))
            return {"input_ids": [*start, *first, *middle, *second, *end]}
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8  # no token is empty, and few are added
        while True:
            ids = (ctypes.c_int32 * room)()
            count = self.llama.llama_tokenize(self.vocab, data, len(data), ids, room, add_special_tokens, True)
            if count >= 0:
                return {"input_ids": ids[:count]}
            room = -count

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **_: Any) -> str:
        """Return the text of tokens, with that of special tokens unless they are skipped."""
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens:
            ids = [token for token in ids if not self.llama.llama_vocab_is_control(self.vocab, token)]
        data = b"".join(map(self.token_bytes, ids))
        if self._strips and ids and not self.llama.llama_vocab_is_control(self.vocab, ids[0]):
            data = data.removeprefix(SPACE)
        return data.decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for; those of its name for a special token."""
        piece = self._pieces.get(token)
        if piece is None:
            buffer = ctypes.create_string_buffer(PIECE)
            length = self.llama.llama_token_to_piece(self.vocab, token, buffer, PIECE, 0, True)
            if length < 0:
                buffer = ctypes.create_string_buffer(-length)
                length = self.llama.llama_token_to_piece(self.vocab, token, buffer, -length, 0, True)
            piece = self._pieces[token] = buffer.raw[:length]
        return piece

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """Return the name of a token, or None for an id beyond the vocabulary."""
        return self.name(token) if 0 <= token < self.count else None

    def convert_tokens_to_ids(self, name: str) -> int | None:
        return self.get_vocab().get(name)

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of all tokens by name."""
        return self._ids

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> str:
        """Return the text of messages in the chat template of the file."""
        assert self.chat_template is not None
        options.pop("tokenize", None)
        special = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        return render(self.chat_template, messages, **(special | options))

    def name(self, token: int | None) -> str | None:
        """Return the name of a token, as the file writes it."""
        text = None if token is None else self.llama.llama_vocab_get_text(self.vocab, token)
        return None if text is None else text.decode(errors="replace")

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a response: the end of the text, of a turn, and others that the file or llama.cpp names."""
        return frozenset(i for i in range(self.count) if self.llama.llama_vocab_is_eog(self.vocab, i))

    @cached_property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are matched in a text before it is tokenized; those that are special or unused are marked."""
        kinds = {token: self.llama.llama_vocab_get_attr(self.vocab, token) for token in range(self.count)}
        return {
            token: AddedToken(self.name(token) or "", bool(kind & (CONTROL | UNUSED)))
            for token, kind in kinds.items()
            if kind & (CONTROL | UNUSED | USER_DEFINED)
        }

    @property
    def special_tokens_map(self) -> dict[str, str]:
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "sep_token": self.name(self.sep_token_id)}
        return {kind: name for kind, name in names.items() if name is not None}

    @property
    def all_special_ids(self) -> list[int]:
        return [token for token, added in self.added_tokens_decoder.items() if added.special]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self.name(i) or "": i for i in range(self.count)}

    @cached_property
    def _separators(self) -> tuple[list[int], list[int], list[int]]:
        """The tokens before, between and after the texts of a pair."""
        adds = {kind: bool(getattr(self.llama, f"llama_vocab_get_add_{kind}")(self.vocab)) for kind in ("bos", "eos", "sep")}
        if "tokenizer.ggml.add_sep_token" not in self.metadata:  # conversions of XLM-RoBERTa before there was this key
            adds["sep"] |= self.llama.llama_vocab_type(self.vocab) == UGM
        eos, sep = ([token] if adds[kind] and (token := self._id(kind)) is not None else [] for kind in ("eos", "sep"))
        bos = [self.bos_token_id] if adds["bos"] and self.bos_token_id is not None else []
        return bos, [*eos, *sep], eos or sep

    def _id(self, kind: str) -> int | None:
        token: int = getattr(self.llama, f"llama_vocab_{kind}")(self.vocab)
        return token if token >= 0 else None

    def _template(self) -> str | None:
        text = self.llama.llama_model_chat_template(self.model, None)
        return None if text is None else text.decode()

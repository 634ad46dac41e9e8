"""The interface of tokenizers: the methods of transformers' tokenizers that this package uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """A tokenizer of transformers, or one with the same methods. `chat_template` is a Jinja template or None."""

    chat_template: Any

    def __len__(self) -> int: ...

    def __call__(self, text: Any, /, *, add_special_tokens: bool = ...) -> Any:
        """Return a mapping with the token ids of a text (`input_ids`)."""
        ...

    def decode(self, token_ids: Any, skip_special_tokens: bool = ..., **options: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any, /) -> Any: ...

    def convert_tokens_to_ids(self, tokens: Any, /) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def apply_chat_template(self, *messages: Any, **options: Any) -> Any:
        """Return the text of a list of messages in the chat template, for `tokenize=False`."""
        ...


class PairTokenizer(Tokenizer, Protocol):
    """A tokenizer that encodes pairs of texts and names its special tokens, for reward models."""

    @property
    def special_tokens_map(self) -> Mapping[str, str]: ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    @property
    def all_special_ids(self) -> Sequence[int]: ...

    def __call__(self, text: Any, text_pair: Any = ..., /, *, add_special_tokens: bool = ...) -> Any: ...

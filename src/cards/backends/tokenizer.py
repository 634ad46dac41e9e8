"""Tokenizers from the files of a model, without transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards.backends.chat_template import default_template, render
from cards.errors import require

if TYPE_CHECKING:
    import tokenizers

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTokenizer:
    """A chat template with its special tokens. The vocabulary is unknown, so a text has no token ids."""

    def __init__(self, chat_template: str | None, special_tokens: Mapping[str, str]) -> None:
        self.chat_template, self.special_tokens_map = chat_template, dict(special_tokens)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self.special_tokens_map.get("bos_token")

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool = False, **options: Any) -> str:
        """Return the text of messages in the chat template. Raises the errors of `render`."""
        assert self.chat_template is not None, "callers check it"
        assert not tokenize, "callers tokenize the text"
        return render(self.chat_template, messages, **(self.special_tokens_map | options))

    def __len__(self) -> int:
        return 0

    def __call__(self, text: str, text_pair: str | None = None, /, *, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": []}

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        return ""

    def convert_ids_to_tokens(self, token: int, /) -> str | None:
        return None

    def convert_tokens_to_ids(self, token: str, /) -> int | None:
        return None

    def get_vocab(self) -> dict[str, int]:
        return {}


class FileTokenizer(ChatTokenizer):
    """A tokenizer of the library `tokenizers`. It gives the ids and texts of transformers' PreTrainedTokenizerFast.

    `special_tokens` are by name (`bos_token`); those in `further` have no name. Tokens that `backend` lacks are added to it.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: str | None,
        special_tokens: Mapping[str, str],
        further: Sequence[str] = (),
    ) -> None:
        super().__init__(chat_template, special_tokens)
        from tokenizers import AddedToken

        self.backend_tokenizer = backend
        self.special_tokens = list(dict.fromkeys([*special_tokens.values(), *further]))
        backend.no_truncation()
        backend.no_padding()
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_tokens([AddedToken(token, special=True) for token in self.special_tokens if token not in known])

    @classmethod
    def from_folder(cls, folder: Path) -> FileTokenizer:
        """Load tokenizer.json, with the special tokens and the chat template of the other files of a folder.

        Raises OSError or ValueError.
        """
        require("A tokenizer of a folder or of the Hugging Face Hub", "http", "tokenizers")
        from tokenizers import AddedToken, Tokenizer

        content = (folder / "tokenizer.json").read_bytes()
        try:
            backend = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises no other type
            raise ValueError(f"{folder / 'tokenizer.json'} is damaged: {error}") from error
        config = read_json(folder / "tokenizer_config.json")
        added = config.get("added_tokens_decoder")
        if added is None:  # folders of older versions of transformers
            config |= read_json(folder / "special_tokens_map.json")
            special = {*_named(config).values(), *_further(config)}
            names = {number: name for name, number in read_json(folder / "added_tokens.json").items()}
            added = {i: {"content": n, "normalized": n not in special, "special": n in special} for i, n in names.items()}
        backend.encode_special_tokens = config.get("split_special_tokens", False)
        backend.add_tokens([AddedToken(**added[i]) for i in sorted(added, key=int)])
        template = default_template(_templates(folder) or config.get("chat_template"))
        found = cls(backend, template, _named(config), _further(config))
        found._cards_file = hashlib.sha256(content).hexdigest()  # type: ignore[attr-defined]
        return found

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins a text."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends a text."""
        return self._special_id("eos_token")

    @property
    def sep_token_id(self) -> int | None:
        """The id of the token that separates texts."""
        return self._special_id("sep_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self.convert_tokens_to_ids(token)

    @property
    def added_tokens_decoder(self) -> Mapping[int, tokenizers.AddedToken]:
        return self.backend_tokenizer.get_added_tokens_decoder()

    @property
    def all_special_ids(self) -> Sequence[int | None]:
        return [self.convert_tokens_to_ids(token) for token in self.special_tokens]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(self, text: str, text_pair: str | None = None, /, *, add_special_tokens: bool = True) -> dict[str, Any]:
        encoding = self.backend_tokenizer.encode(text, text_pair, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token: int, /) -> str | None:
        return self.backend_tokenizer.id_to_token(token)

    def convert_tokens_to_ids(self, token: str, /) -> int | None:
        number = self.backend_tokenizer.token_to_id(token)
        return self.backend_tokenizer.token_to_id(self.special_tokens_map.get("unk_token", "")) if number is None else number

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()


def read_json(file: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, or an empty dict if it does not exist."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _templates(folder: Path) -> dict[str, str]:
    """Return the chat templates in separate files, by name."""
    files = {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    files |= {"default": file} if (file := folder / "chat_template.jinja").is_file() else {}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens of a tokenizer's configuration by name, in the order in which they are added."""
    extra = config.get("extra_special_tokens")
    further = [name for name in config if name.endswith("_token") and name not in NAMES]
    tokens = {name: config[name] for name in (*NAMES, *further) if isinstance(config.get(name), str | dict)}
    return {name: _content(value) for name, value in (tokens | (extra if isinstance(extra, dict) else {})).items()}


def _further(config: Mapping[str, Any]) -> list[str]:
    """Return the special tokens without a name."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return [] if isinstance(extra, dict) else [_content(token) for token in extra]


def _content(token: str | dict[str, Any]) -> str:
    return str(token["content"]) if isinstance(token, dict) else token

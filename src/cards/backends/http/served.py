"""Facts about a served model, from the server and from local model files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cards.backends.files import Kind, ModelFolder, load_tokenizer, locate
from cards.backends.http.client import Client, RejectedRequestError
from cards.backends.tokenizer import ChatTokenizer, FileTokenizer, read_json
from cards.engines.text import reason
from cards.errors import MissingExtraError, SettingError, check, require
from cards.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on a server, and the features that the server offers."""

    model: str
    context: int
    vocabulary: int  # number of tokens, or an upper bound
    top: int = 0  # number of top log-probabilities per token; 0 if they cannot be used
    extras: tuple[tuple[str, Any], ...] = ()  # supported fields beyond OpenAI's, with their neutral values
    ids: bool = False  # whether the server accepts and returns token ids


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The local files of a model: its tokenizer, and its configuration (config.json) if there is one."""

    tokenizer: Tokenizer
    end_ids: frozenset[int]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens that the model has logits for."""
        config = self.config.get("text_config", self.config)
        return int(config.get("vocab_size") or len(self.tokenizer))

    @property
    def labels(self) -> dict[int, str]:
        """Return the names of the outputs of a classifier. As in transformers, a configuration without them means two."""
        count = self.config.get("num_labels") or 2
        labels = self.config.get("id2label") or {i: f"LABEL_{i}" for i in range(count)}
        return {int(i): label for i, label in labels.items()}

    @classmethod
    def find(cls, tokenizer: str | Tokenizer | None, candidates: Sequence[str], embedded: Kind) -> ModelFiles | None:
        """Return the files of the given tokenizer, or those at the first of `candidates` (folders or names) that has them.

        `tiny` is the embedded model in folder `embedded`. Raises SettingError if the given tokenizer is not found.
        """
        if tokenizer is not None and not isinstance(tokenizer, str):
            return cls(tokenizer, _ids(getattr(tokenizer, "eos_token_id", None)))
        for name in candidates if tokenizer is None else (tokenizer,):
            try:
                return cls._load(locate(name, embedded))
            except MissingExtraError:
                raise
            except (OSError, ValueError) as error:
                why = reason(error).splitlines()[0]
                check(tokenizer is None, f"No tokenizer was found at {tokenizer!r} ({why}). Give a folder or a name.")
        return None

    @classmethod
    def _load(cls, files: ModelFolder) -> ModelFiles:
        """Read tokenizer.json, or convert other files of a tokenizer with transformers. Raises OSError or ValueError."""
        folder = files.folder
        if (folder / "tokenizer.json").is_file():
            tokenizer: Any = FileTokenizer.from_folder(folder)
        else:
            require(f"{files.name!r} has no tokenizer.json, and the conversion of its tokenizer", "local", "transformers")
            tokenizer = load_tokenizer(files)
        end_ids = read_json(folder / "generation_config.json").get("eos_token_id")
        return cls(tokenizer, _ids(tokenizer.eos_token_id if end_ids is None else end_ids), read_json(folder / "config.json"))

    @classmethod
    def from_props(cls, props: dict[str, Any]) -> ModelFiles:
        """Wrap the chat template in the properties of llama.cpp's server in a tokenizer without a vocabulary."""
        special = {name: str(props[name]) for name in ("bos_token", "eos_token") if props.get(name)}
        return cls(ChatTokenizer(props.get("chat_template") or None, special), frozenset())


def _ids(ids: int | list[int] | None) -> frozenset[int]:
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


async def model_card(client: Client, path: str, name: str) -> dict[str, Any]:
    """Return the entry of model `name` in the server's model list, or its only entry if `name` is empty.

    Raises SettingError.
    """
    try:
        models = await client.get(path)
    except RejectedRequestError as error:
        if error.status != 404:
            raise
        raise SettingError(f"{error} The address of an OpenAI-compatible server usually ends in /v1.") from error
    try:
        cards: dict[str, Any] = {card["id"]: card for card in models["data"]}
    except (KeyError, TypeError) as error:
        raise SettingError(f"{client.address} did not return a model list. Is it an OpenAI-compatible server?") from error
    names = ", ".join(cards)
    if name:
        check(name in cards, f"The server at {client.address} does not have model {name!r}. It has: {names}.")
        return dict(cards[name])
    check(len(cards) == 1, f"The server at {client.address} has several models: {names}. Add #NAME to the address.")
    return dict(*cards.values())

"""Facts about a served model, from the server and from local model files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RejectedRequestError
from cards.errors import SettingError, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cards.backends.files import Kind


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
    """The local files of a model: its tokenizer, and its configuration if there is one."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    config: Any = None

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens that the model has logits for."""
        return int(self.config.get_text_config().vocab_size) if self.config else len(self.tokenizer)

    @classmethod
    def find(
        cls, tokenizer: str | PreTrainedTokenizerBase | None, candidates: Sequence[str], embedded: Kind
    ) -> ModelFiles | None:
        """Return the files of the given tokenizer, or those at the first of `candidates` (folders or names) that has them.

        `tiny` is the embedded model in folder `embedded`. Raises SettingError if the given tokenizer is not found.
        """
        from transformers import AutoConfig, GenerationConfig

        from cards.backends.files import load_tokenizer, locate

        if tokenizer is not None and not isinstance(tokenizer, str):
            return cls(tokenizer, _ids(tokenizer.eos_token_id))
        for name in candidates if tokenizer is None else (tokenizer,):
            with suppress(OSError, ValueError):
                files = locate(name, embedded)
                found, source = load_tokenizer(files), files.folder
                config, end_ids = None, found.eos_token_id
                with suppress(OSError, ValueError):
                    config = AutoConfig.from_pretrained(source)
                    end_ids = GenerationConfig.from_pretrained(source).eos_token_id or end_ids
                return cls(found, _ids(end_ids), config)
        check(tokenizer is None, f"No tokenizer was found at {tokenizer!r}. Give a folder or a Hugging Face name.")
        return None

    @classmethod
    def from_props(cls, props: dict[str, Any]) -> ModelFiles:
        """Wrap the chat template in the properties of llama.cpp's server in a tokenizer without a vocabulary."""
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        options = {name: props.get(name) or None for name in ("chat_template", "bos_token", "eos_token")}
        tokenizer: Any = PreTrainedTokenizerFast
        return cls(tokenizer(tokenizer_object=Tokenizer(models.BPE()), **options), frozenset())


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

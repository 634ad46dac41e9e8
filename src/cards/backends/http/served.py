"""What is known of a model that a server has: from the server, and from the model's files here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cards.backends.http.client import Client, RefusedError
from cards.errors import SettingError, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of a model, and what it was found to take and to tell."""

    model: str
    context: int
    vocabulary: int  # how many tokens it has, or an upper bound
    top: int = 0  # log-probabilities that the server shows, the highest ones
    extras: tuple[tuple[str, Any], ...] = ()  # fields beyond OpenAI's that it takes
    ids: bool = False  # whether it takes token ids and tells them


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files of a model say: its tokenizer, and, where there are more, its configuration."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    config: Any = None

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has logits for."""
        return int(self.config.get_text_config().vocab_size) if self.config else len(self.tokenizer)

    @classmethod
    def find(cls, tokenizer: str | PreTrainedTokenizerBase | None, likely: Sequence[str], embedded: str) -> ModelFiles | None:
        """By the tokenizer or its place, if one is given, else in the first of the likely places that has one.

        `tiny` is the embedded model in folder `embedded`. Raises SettingError if there is none in the place given.
        """
        from transformers import AutoConfig, GenerationConfig

        from cards.backends.files import load_tokenizer, locate

        if tokenizer is not None and not isinstance(tokenizer, str):
            return cls(tokenizer, _ids(tokenizer.eos_token_id))
        for place in likely if tokenizer is None else (tokenizer,):
            with suppress(OSError, ValueError):
                source = locate(place, embedded)
                found = load_tokenizer(source)
                config, ends = None, found.eos_token_id
                with suppress(OSError, ValueError):
                    config = AutoConfig.from_pretrained(source)
                    ends = GenerationConfig.from_pretrained(source).eos_token_id or ends
                return cls(found, _ids(ends), config)
        check(tokenizer is None, f"There is no tokenizer at {tokenizer!r}: give a folder or a Hugging Face name.")
        return None

    @classmethod
    def of_props(cls, props: dict[str, Any]) -> ModelFiles:
        """The chat template among the properties that llama.cpp's server tells, in a tokenizer that knows no tokens."""
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        told = {name: props.get(name) or None for name in ("chat_template", "bos_token", "eos_token")}
        tokenizer: Any = PreTrainedTokenizerFast
        return cls(tokenizer(tokenizer_object=Tokenizer(models.BPE()), **told), frozenset())


def _ids(given: int | list[int] | None) -> frozenset[int]:
    return frozenset([] if given is None else [given] if isinstance(given, int) else given)


async def card_of(client: Client, path: str, wanted: str) -> dict[str, Any]:
    """What a server's list of models has of the one wanted, or of its only one. Raises SettingError."""
    try:
        listed = await client.get(path)
    except RefusedError as error:
        if error.status != 404:
            raise
        raise SettingError(f"{error} The address of an OpenAI-compatible server ends in /v1 as a rule.") from error
    try:
        cards: dict[str, Any] = {card["id"]: card for card in listed["data"]}
    except (KeyError, TypeError) as error:
        raise SettingError(f"What {client.address} lists are no models: it is no OpenAI-compatible server.") from error
    names = ", ".join(cards)
    if wanted:
        check(wanted in cards, f"The server at {client.address} does not have {wanted!r}; it has: {names}.")
        return dict(cards[wanted])
    check(len(cards) == 1, f"The server at {client.address} has several models: add #NAME to its address, NAME one of {names}.")
    return dict(*cards.values())

"""Text and tokens: streaming detokenisation, stop strings, and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from cards.errors import PromptError, PromptTooLongError
from cards.events import Message, Prompt
from cards.fingerprint import fingerprint
from cards.prompts import check_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenDecoder(Protocol):
    """A tokenizer that can decode tokens."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ..., **options: Any) -> Any:
        """Return the text of tokens."""
        ...


CONTEXT = 8  # preceding tokens that can change the text of a token (spaces, split characters)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes tokens incrementally after the tokens `context`. Incomplete characters are held back."""

    def __init__(self, tokenizer: TokenDecoder, context: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.window = list(context[-CONTEXT:])
        self.text = ""
        self._emitted = self._decode().rstrip(UNFINISHED)

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens and return the text so far."""
        self.window += token_ids
        new = self._decode().rstrip(UNFINISHED)
        if len(new) > len(self._emitted):
            self.text += new[len(self._emitted) :]
            self._emitted = new
            if len(self.window) > 4 * CONTEXT:
                self.window = self.window[-CONTEXT:]
                self._emitted = self._decode().rstrip(UNFINISHED)
        return self.text

    def finish(self) -> str:
        """Return the text, with a replacement character for an incomplete character at the end."""
        return self.text + self._decode()[len(self._emitted) :]

    def _decode(self) -> str:
        decoded = self.tokenizer.decode(self.window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, decoded)


def find_stop(text: str, stop: Sequence[str], searched: int) -> int | None:
    """Return the start of the first stop string, or None. The first `searched` characters contain none."""
    found = [at for s in stop if (at := text.find(s, max(0, searched - len(s) + 1))) >= 0]
    return min(found, default=None)


def hold_back(text: str, stop: Sequence[str]) -> str:
    """Return the text without a tail that may start a stop string."""
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> Prompt:
    """Tokenize raw text unchanged, or messages with the chat template. Raises PromptError for invalid prompts."""
    if isinstance(prompt, str):
        messages, text = None, prompt
        if not prompt.strip():
            raise PromptError("The prompt is empty: give a text or messages.")
        ids = tokenizer(prompt)["input_ids"]
    else:
        messages = check_messages(prompt)
        if tokenizer.chat_template is None:
            raise PromptError(
                "The prompt is a list of messages, but the tokenizer of this model has no chat template: give raw text, or "
                "set tokenizer.chat_template."
            )
        turns: Any = list(messages)
        text = cast(str, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    template = cast("str | None", tokenizer.chat_template)
    return Prompt(text, tuple(cast("list[int]", ids)), messages, fingerprint(tokenizer), template)


def check_fits(prompt: Prompt, name: str, context: int) -> Prompt:
    """Return the prompt if it leaves room for a response in the context of model `name`. Raises PromptTooLongError."""
    if (length := len(prompt.token_ids)) >= context:
        raise PromptTooLongError(
            f"The prompt has {length} tokens, but the context of {name!r} is {context} with the response: shorten the prompt, "
            "or load the model with a larger context."
        )
    return prompt

"""Tokens to text and back: streaming detokenisation, stop strings and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from cards.errors import PromptError
from cards.events import Message, Prompt
from cards.fingerprint import fingerprint
from cards.prompts import check_messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Decodes(Protocol):
    """What is needed of a tokenizer to read tokens."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = ..., **options: Any) -> Any: ...


CONTEXT = 8  # tokens before a text that can change how its first token reads (spaces, split characters)
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Text of tokens as they come, after `context`. Bytes of an unfinished character wait for the rest of it."""

    def __init__(self, tokenizer: Decodes, context: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.window = list(context[-CONTEXT:])
        self.text = ""
        self._told = self._decode().rstrip(UNFINISHED)

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the text so far."""
        self.window += token_ids
        new = self._decode().rstrip(UNFINISHED)
        if len(new) > len(self._told):
            self.text += new[len(self._told) :]
            self._told = new
            if len(self.window) > 4 * CONTEXT:
                self.window = self.window[-CONTEXT:]
                self._told = self._decode().rstrip(UNFINISHED)
        return self.text

    def finish(self) -> str:
        """The text, with what is left of an unfinished character shown as a replacement character."""
        return self.text + self._decode()[len(self._told) :]

    def _decode(self) -> str:
        decoded = self.tokenizer.decode(self.window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, decoded)


def find_stop(text: str, stop: Sequence[str], searched: int) -> int | None:
    """Where the first stop string begins in text, given that its first `searched` characters hold none."""
    found = [at for s in stop if (at := text.find(s, max(0, searched - len(s) + 1))) >= 0]
    return min(found, default=None)


def hold_back(text: str, stop: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a stop string."""
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> Prompt:
    """Raw text is left alone; messages go through the chat template. Raises PromptError on an empty or malformed prompt."""
    if isinstance(prompt, str):
        messages, text = None, prompt
        if not prompt.strip():
            raise PromptError("The prompt is empty: give the text or the messages to answer.")
        ids = tokenizer(prompt)["input_ids"]
    else:
        messages = check_messages(prompt)
        if tokenizer.chat_template is None:
            raise PromptError(
                "The prompt is a list of messages, but this model's tokenizer has no chat template: give raw text, or set "
                "tokenizer.chat_template."
            )
        turns: Any = list(messages)
        text = cast(str, tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    template = cast("str | None", tokenizer.chat_template)
    return Prompt(text, tuple(cast("list[int]", ids)), messages, fingerprint(tokenizer), template)


def check_fits(prompt: Prompt, name: str, context: int) -> Prompt:
    """The prompt, if the model `name` has room for an answer after it. Raises PromptError."""
    if (length := len(prompt.token_ids)) >= context:
        raise PromptError(
            f"The prompt has {length} tokens, and the context of {name!r} is {context} with the answer: shorten the prompt "
            "or load the engine with a larger context."
        )
    return prompt

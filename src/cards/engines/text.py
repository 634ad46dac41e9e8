"""Stop strings, and the tokens of prompts."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from cards.engines.detokenizer import Detokenizer
from cards.errors import MismatchError, PromptError, PromptTooLongError
from cards.events import Message, Prompt
from cards.fingerprint import fingerprint
from cards.prompts import Chat, check_messages, check_text
from cards.tokenizer import Tokenizer


def find_stop(text: str, stop: Sequence[str], searched: int) -> int | None:
    """Return the start of the first stop string, or None. The first `searched` characters contain none."""
    found = [at for s in stop if (at := text.find(s, max(0, searched - len(s) + 1))) >= 0]
    return min(found, default=None)


def hold_back(text: str, stop: Sequence[str]) -> str:
    """Return the text without a tail that may start a stop string."""
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]


def encode(tokenizer: Tokenizer, prompt: str | Sequence[Message]) -> Prompt:
    """Tokenize raw text unchanged, or messages with the chat template. Raises PromptError for invalid prompts."""
    begun, variables = "", dict[str, Any]()
    if isinstance(prompt, str):
        messages, text = None, check_text(prompt)
        ids = tokenizer(prompt)["input_ids"]
    else:
        messages = check_messages(prompt)
        if tokenizer.chat_template is None:
            raise PromptError(
                "The prompt is a list of messages, but the tokenizer of this model has no chat template: give raw text, or "
                "load the model with a chat template (chat_template=..., --chat-template)."
            )
        variables = prompt.chat_template_kwargs if isinstance(prompt, Chat) else variables
        continued = isinstance(prompt, Chat) and prompt.continued
        if unused := [name for name in variables if not uses(tokenizer.chat_template, name)]:
            raise PromptError(f"The chat template of this model does not use the argument {unused[0]!r}: leave it out.")
        try:
            text = _rendered(tokenizer, list(messages), variables, continued)
        except Exception as error:  # templates raise errors of many types
            raise PromptError(f"The chat template of this model refuses these messages: {reason(error)}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if continued:
            last = messages[-1]["content"]
            messages, begun = messages[:-1], last if text.endswith(last) else last.strip()
    template = cast("str | None", tokenizer.chat_template)
    return Prompt(text, tuple(cast("list[int]", ids)), messages, fingerprint(tokenizer), template, begun, variables or None)


def uses(template: object, variable: str) -> bool:
    """Return whether a chat template uses a variable."""
    return re.search(rf"\b{re.escape(variable)}\b", str(template)) is not None


def with_template(tokenizer: Any, template: str, name: str) -> Any:
    """Return a copy of the tokenizer of model `name` with another chat template. Raises MismatchError if it renders none."""
    if not hasattr(tokenizer, "apply_chat_template"):
        raise MismatchError(f"Engine {name!r} has no tokenizer that renders chat templates: leave out the chat template.")
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def _rendered(tokenizer: Tokenizer, turns: list[Message], variables: Mapping[str, Any], continued: bool) -> str:
    """Return the messages in the chat template.

    Some templates (Llama Guard 4, multimodal models) read messages as lists of parts, and leave out messages of plain text.
    """

    def render(turns: Any) -> str:
        ending = {"continue_final_message": True} if continued else {"add_generation_prompt": True}
        return cast(str, tokenizer.apply_chat_template(turns, tokenize=False, **ending, **variables))

    def has_all(text: str) -> bool:
        return all(turn["content"].strip() in text for turn in turns)

    text = render(turns)
    if not has_all(text):
        with suppress(Exception):  # of templates that read plain text
            parts = render([turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns])
            return parts if has_all(parts) else text
    return text


def prompt_text(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Return the text of a prompt's tokens, without those that the tokenizer writes before every text."""
    before = list(tokenizer("")["input_ids"]) if callable(tokenizer) else []
    if list(token_ids[: len(before)]) == before:
        token_ids = token_ids[len(before) :]
    text = Detokenizer(tokenizer, ())
    text.push(token_ids)
    return text.finish()


def reason(error: Exception) -> str:
    """Return the type and the message of an error of a dependency."""
    return f"{type(error).__name__}: {error}"


def check_ids(token_ids: Sequence[int], name: str, vocab_size: int | None) -> None:
    """Raise PromptError unless model `name` has an embedding for each of the token ids."""
    if vocab_size is not None and token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        bad = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise PromptError(
            f"The text has the token id {bad}, but {name!r} has embeddings for the ids below {vocab_size}: use the tokenizer "
            "that the model was trained with."
        )


def check_fits(prompt: Prompt, name: str, context: int, vocab_size: int | None = None) -> Prompt:
    """Return the prompt if model `name` can read it with room for a response in its context.

    Raises PromptError, or PromptTooLongError.
    """
    check_ids(prompt.token_ids, name, vocab_size)
    room_left(name, context, len(prompt.token_ids))
    return prompt


def room_left(name: str, context: int, used: int) -> int:
    """Return how many tokens fit into the context of model `name` after `used` ones. Raises PromptTooLongError if none does."""
    if used >= context:
        raise PromptTooLongError(
            f"The prompt has {used} tokens, but the context of {name!r} is {context} tokens with the response: shorten the "
            "prompt, or load the model with a larger context."
        )
    return context - used

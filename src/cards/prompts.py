"""Forms of a prompt: raw text, a dialogue in plain text, or messages for the chat template of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cards.errors import PromptError, SettingError, check
from cards.events import Message, Prompt
from cards.settings import FORM, check_settings, setting

FORMS = ("auto", "chat", "dialogue", "raw")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
RESERVED = frozenset(  # parameters of apply_chat_template that are not variables of the template
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class Chat(list[Message]):
    """Messages, with further variables for the chat template, such as `enable_thinking`. Raises PromptError.

    `answered` says that the last message is a response, which may be empty. `continued` says that the response continues the
    last message, which is the assistant's.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        chat_template_kwargs: Mapping[str, Any],
        *,
        answered: bool = False,
        continued: bool = False,
    ) -> None:
        super().__init__(messages)
        self.answered, self.continued = answered, continued
        if continued and not (self and self[-1].get("role") == "assistant" and self[-1].get("content")):
            raise PromptError("Only a message of the assistant with text can be continued: end the messages with one.")
        if reserved := RESERVED.intersection(chat_template_kwargs):
            raise PromptError(f"{min(reserved)} cannot be an argument of the chat template: leave it out.")
        self.chat_template_kwargs = dict(chat_template_kwargs)

    def replaced(self, messages: Sequence[Message], chat_template_kwargs: Mapping[str, Any]) -> Chat:
        """Return other messages and variables with the same treatment of the last message."""
        return Chat(messages, chat_template_kwargs, answered=self.answered, continued=self.continued)


def rendered_as(prompt: Prompt, messages: Sequence[Message]) -> Chat:
    """Return messages to render as those of the prompt: with its template variables and its beginning of the response."""
    begun = [Message(role="assistant", content=prompt.begun)] if prompt.begun else []
    return Chat([*messages, *begun], prompt.chat_template_kwargs or {}, continued=bool(begun))


@dataclass(frozen=True, kw_only=True)  # without slots, so that plans can combine it with other options
class ChatOptions:
    """Options of a command or a study for the chat template of its model. Raises SettingError."""

    system: str | None = setting(None, help="System message, unless the prompt has one.", escapes=True)
    chat_template_kwargs: str | None = setting(
        None, help="Variables for the chat template, as JSON: '{\"enable_thinking\": false}'."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check(self.form in FORMS, f"form must be one of {', '.join(FORMS)}, got {self.form!r}.")
        check(
            self.form in ("auto", "chat") or not self.needs_template,
            f"Prompts of the form {self.form!r} use no chat template: leave out --system and --chat-template-kwargs.",
        )
        try:
            Chat([], self.arguments)
        except (ValueError, TypeError, AttributeError, PromptError) as error:
            raise SettingError(
                f"--chat-template-kwargs must be a JSON object, got {self.chat_template_kwargs!r} ({error})."
            ) from error

    @property
    def form(self) -> str:
        """The form of the prompts, one of FORMS."""
        return "auto"

    @property
    def arguments(self) -> dict[str, Any]:
        """The variables for the chat template."""
        return dict(json.loads(self.chat_template_kwargs or "{}").items())

    @property
    def needs_template(self) -> bool:
        """Whether an option needs a chat template."""
        return self.system is not None or self.chat_template_kwargs is not None

    def check_template(self, chats: bool) -> None:
        """Raise PromptError if an option needs a chat template. `chats` is whether the model has one."""
        if not chats and self.needs_template:
            raise PromptError(
                "The model has no chat template, which system messages and template variables need: remove them, or give one "
                "with --chat-template."
            )

    def prompt(self, given: str | Sequence[Message], chats: bool) -> str | list[Message]:
        """Return a prompt for a Decoder. `chats` is whether the model has a chat template. Raises PromptError."""
        self.check_template(chats)
        ready = self._formatted(given, chats)
        return ready if isinstance(ready, str) else self.chat(ready)

    def chat(self, messages: list[Message]) -> list[Message]:
        """Return messages with the system message and the template variables. Those of the messages themselves win."""
        chat = messages if isinstance(messages, Chat) else Chat(messages, {})
        turns = list(messages)
        if self.system is not None and turns[0]["role"] != "system":
            turns = [Message(role="system", content=self.system), *turns]
        return chat.replaced(turns, self.arguments | chat.chat_template_kwargs)

    def _formatted(self, given: str | Sequence[Message], chats: bool) -> str | list[Message]:
        return format_prompt(given, self.form, chats)


@dataclass(frozen=True, kw_only=True)
class FormOptions(ChatOptions):
    """Options of a study that turn its prompts into prompts for a model. Raises SettingError."""

    form: str = setting("auto", help=FORM)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions(ChatOptions):
    """Options of a command that turn text into prompts; messages stay messages. Raises SettingError."""

    raw: bool = setting(False, help="Use the prompt as raw text, without the chat template.")

    @property
    def form(self) -> str:
        return "raw" if self.raw else "auto"

    def _formatted(self, given: str | Sequence[Message], chats: bool) -> str | list[Message]:
        return format_prompt(given, self.form, chats) if isinstance(given, str) else list(check_messages(given))


def read_template(template: str) -> str:
    """Return a chat template (Jinja), read from a file if the name of a .jinja file is given. Raises SettingError."""
    if template.endswith(".jinja"):
        check(Path(template).is_file(), f"The chat template must be an existing file, got {template!r}.")
        return Path(template).read_text(encoding="utf-8")
    return template


def check_template(template: str) -> str:
    """Return a chat template as `read_template` does. Raises SettingError if it is not Jinja that prints something."""
    text = read_template(template)
    check("{{" in text, f"The chat template must be a .jinja file or Jinja text with {{{{ }}}}, got {template!r}.")
    return text


def check_text(prompt: str) -> str:
    """Return the text of a raw prompt. Raises PromptError if it is empty or has half of a character."""
    if not prompt.strip():
        raise PromptError("The prompt is empty: give a text or messages.")
    _check_characters(prompt, "The prompt")
    return prompt


def _check_characters(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{name} has a lone surrogate (half of a character), {text[error.start]!r}, at position {error.start}: remove it."
        ) from error


def check_messages(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages as a tuple. Raises PromptError if one is malformed or the last is empty."""
    if not messages:
        raise PromptError("The prompt is an empty list: give at least one message.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise PromptError(f"Message {i} must be a dict with 'role' and 'content', got {message!r}.")
        if not isinstance(message["content"], str):
            raise PromptError(f"Message {i}: content must be text, got {type(message['content']).__name__}.")
        _check_characters(message["content"], f"Message {i}")
    if not messages[-1]["content"].strip() and not (isinstance(messages, Chat) and messages.answered):
        raise PromptError("The last message is empty: give a message to respond to.")
    return tuple(messages)


def read_messages(turns: Sequence[Any]) -> list[Message]:
    """Return the turns of a row of data as messages, without the responses at their end. Raises PromptError.

    Turns are messages of OpenAI, whose content may be a list of text parts, or of ShareGPT (`from` and `value`).
    """
    messages = [_read_message(turn) for turn in turns]
    while messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        messages.pop()
    if turns and not messages:
        raise PromptError("The prompt has no message before the response.")
    return list(check_messages(messages))


def _read_message(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    if "role" not in turn and {"from", "value"} <= turn.keys():
        turn = {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
    parts = turn.get("content")
    if not isinstance(parts, list):
        return turn
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PromptError(f"A part of a message must have the type text and a text, got {str(part)[:80]}.")
    return {**turn, "content": "".join(part["text"] for part in parts)}


def format_prompt(prompt: str | Sequence[Message], form: str, chats: bool) -> str | list[Message]:
    """Convert a prompt to one of FORMS, ready for a Decoder.

    chat: messages for the chat template of the model. dialogue: text with `Human:` and `Assistant:` turns. raw: the text
    unchanged. auto: chat if the model has a chat template (`chats`), otherwise raw for text and dialogue for messages.
    Raises PromptError for messages with the form raw.
    """
    if form == "auto":
        form = "chat" if chats else "raw" if isinstance(prompt, str) else "dialogue"
    if form == "raw":
        if not isinstance(prompt, str):
            raise PromptError("A list of messages cannot have the form raw: use the form dialogue or chat.")
        return prompt
    messages = [Message(role="user", content=prompt.strip())] if isinstance(prompt, str) else list(prompt)
    if form == "chat":
        return messages
    names = {"user": "Human", "assistant": "Assistant"}
    turns = [f"\n\n{names[m['role']]}: {m['content']}" if m["role"] in names else m["content"] for m in messages]
    return "".join(turns) + "\n\nAssistant:"

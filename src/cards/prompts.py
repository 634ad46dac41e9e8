"""Forms of a prompt: raw text, a dialogue in plain text, or messages for the chat template of the model."""

from __future__ import annotations

from collections.abc import Sequence

from cards.errors import PromptError
from cards.events import Message

FORMS = ("auto", "chat", "dialogue", "raw")


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
    if not messages[-1]["content"].strip():
        raise PromptError("The last message is empty: give a message to respond to.")
    return tuple(messages)


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

"""Chat templates, rendered with Jinja in a sandbox as `apply_chat_template` of transformers does, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

END = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of a message to continue while a template is rendered
REASONING = ("reasoning_content", "thinking", "reasoning")  # names for the reasoning of a message, in order of precedence


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """Return the text of messages in a chat template.

    add_generation_prompt: add the tokens that begin a response.
    continue_final_message: end the text with the last message, without the tokens that end a turn.
    variables: further variables, such as `bos_token`, `eos_token` and `enable_thinking`.

    Raises ValueError if the last message cannot be continued, TypeError for values that JSON does not have, and any error of
    the template.
    """
    turns = [_reasoned({key: _plain(value) for key, value in message.items() if value is not None}) for message in messages]
    compiled = _compile(template)
    last = turns[-1].get("content")
    if continue_final_message:
        if add_generation_prompt or not isinstance(last, str) or "content" not in template:
            raise ValueError("Only a template without add_generation_prompt can continue the content of the last message.")
        turns[-1]["content"] = last + END
    defaults = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    text = compiled.render(defaults | {name: _plain(value) for name, value in variables.items()}, messages=turns)
    if not continue_final_message:
        return text
    before, end, after = text.rpartition(END.strip())
    if not end or str(last).strip() not in text:
        raise ValueError("The chat template leaves the last message out, so it cannot be continued.")
    return before if after.startswith(END[len(END.strip()) :]) else before.rstrip()


def default_template(templates: Any) -> str | None:
    """Return the template for chats of a tokenizer's `chat_template`: a template, templates by name, or a list of both.

    Raises ValueError if there are several and none is named `default`.
    """
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    if not isinstance(templates, dict):
        return None if templates is None else str(templates)
    if "default" not in templates:
        raise ValueError(f"None of the chat templates is named 'default'. Their names: {', '.join(sorted(templates))}.")
    return str(templates["default"])


def _plain(value: Any) -> Any:
    """Return a copy of a value in plain types, whose methods the sandbox knows to be harmless. Raises TypeError."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    raise TypeError(f"A chat template gets only values that JSON has, not {type(value).__name__}.")


def _reasoned(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose reasoning, under any of its names, is also under the names that templates read."""
    for name in REASONING:
        if name in message:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


class _Generation(Extension):
    """The tag {% generation %}, which marks the text of the assistant for training. It writes its contents."""

    tags = {"generation"}  # noqa: RUF012 - declared by Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_contents"), [], [], body).set_lineno(line)

    def _contents(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict` without the attributes of the class, which are a way out of a sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace that has no names with an underscore at the start, which are a way out of a sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # without a name for self, which can be a name in the namespace
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A chat template must not set {name!r} of a namespace, which starts with an underscore.")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@lru_cache
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson  # the one of Jinja escapes characters of HTML
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)

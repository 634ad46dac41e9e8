"""Chat templates render to the same text, or fail with the same kind of error, as in transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any

import pytest
from helpers.text_tokenizers import text_tokenizer
from jinja2 import TemplateError

from cards.backends.chat_template import default_template, render

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {{ '<start_of_turn>' + message['role'] + '\\n' + (first if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
QWEN3 = """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" %}{%- set ns.multi_step = false %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.reasoning_content is string %}<think>{{ message.reasoning_content }}</think>{%- endif %}
    {{- message.content.split('</think>')[-1].lstrip('\\n') }}[{{ ns.last }}]
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}<think>\\n\\n</think>{%- endif %}"""
TEMPLATES = {
    "chatml": CHATML,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "generation": "{% for m in messages %}\n  {% generation %}\n  {{ m.content }}{{ eos_token }}\n{% endgeneration %}\n"
    "{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% elif m.role == 'system' %}{% continue %}{% endif %}"
    "{{ m.content }}|{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'é<': 1, 'a': 2} | tojson(sort_keys=true) }}"
    "{{ 'é' | tojson(ensure_ascii=true) }}{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "dict": "{% set d = dict(a=1, b=messages[0].role) %}{{ d }}{{ dict.fromkeys(['x'], 2) }}{{ tools is none }}{{ documents }}",
    "date": "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}",
    "values": "{{ enable_thinking }} {{ options }} {{ undefined }}{{ unk_token }} {{ messages[0].name }}",
    "raises": "{{ raise_exception('only ' + messages[0].role) }}",
    "sandbox": "{{ ''.__class__.__mro__ }}",
    "dict class": "{{ dict.__class__ }}",
    "mutation": "{{ messages.append(1) }}",
    "private": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "private later": "{% set ns = namespace(x=1) %}{% set ns._x = 1 %}",
    "syntax": "{% if %}",
}
USER, ASSISTANT = {"role": "user", "content": " Où? \n"}, {"role": "assistant", "content": "<think>hm</think>\nHere. "}
SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUES: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, USER],
    [USER, USER],
    [SYSTEM, USER, {**ASSISTANT, "reasoning": "so", "tool_calls": None}],
    [{"role": "user", "content": "a", "name": "Ann", "parts": [{"type": "text", "text": "b", "size": (1, 2.5, True, None)}]}],
]


class Level(StrEnum):
    HIGH = "high"


VARIABLES: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": True, "enable_thinking": False, "date_string": "today"},
    {"enable_thinking": Level.HIGH, "options": {"a": [1, (2, 3)]}, "bos_token": "<other>"},
    {"continue_final_message": True},
]


def expected(template: str, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    tokenizer = text_tokenizer("gemma")
    options: Any = {"chat_template": template, "tokenize": False, **variables}
    return str(tokenizer.apply_chat_template(messages, **options))


def outcome(function: Callable[[], str]) -> tuple[type, str]:
    """Return `str` and the text, or the type of an error, and its message if it is that of the template."""
    try:
        return str, function()
    except Exception as error:
        return type(error), str(error) if type(error) is TemplateError else ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_the_text_or_the_error_that_it_gives_in_transformers(name: str) -> None:
    template, tokens = TEMPLATES[name], text_tokenizer("gemma").special_tokens_map
    for messages in DIALOGUES:
        for variables in VARIABLES:
            wanted = outcome(partial(expected, template, messages, variables))
            assert outcome(partial(render, template, messages, **(tokens | variables))) == wanted


def test_rendering_leaves_the_messages_unchanged() -> None:
    message = {"role": "assistant", "content": "a", "reasoning": "b"}
    render("{{ messages[0].content }}", [message], continue_final_message=True)
    assert message == {"role": "assistant", "content": "a", "reasoning": "b"}


def test_values_with_methods_that_the_sandbox_does_not_know_are_refused() -> None:
    with pytest.raises(TypeError, match="only values that JSON has, not object"):
        render("{{ x }}", [USER], x=[object()])


@pytest.mark.parametrize(
    ("given", "template"),
    [
        (None, None),
        ("a", "a"),
        ({"default": "a", "tool_use": "b"}, "a"),
        ([{"name": "rag", "template": "b"}, {"name": "default", "template": "a"}], "a"),
    ],
)
def test_the_default_of_named_templates_is_used(given: Any, template: str | None) -> None:
    assert default_template(given) == template


def test_named_templates_without_a_default_are_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match="rag, tool_use"):
        default_template({"tool_use": "a", "rag": "b"})

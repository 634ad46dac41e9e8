"""Grammars from the formats of other software: `response_format` of OpenAI and `structured_outputs` of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cards.errors import SettingError, UnknownNameError, check
from cards.grammar import Grammar

TYPES = ("text", "json_object", "json_schema")
CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar")
WHITESPACE = "disable_any_whitespace"


def read_response_format(given: Any) -> Grammar | None:
    """Return the grammar of a `response_format`, or None for text. Raises SettingError or UnknownNameError.

    A `strict` JSON schema is the same as another, because every schema is an exact constraint here.
    """
    kind = given.get("type") if isinstance(given, Mapping) else None
    check(isinstance(kind, str), f"response_format must be an object with a type ({', '.join(TYPES)}), got {given!r}.")
    if kind not in TYPES:
        raise UnknownNameError("type of response_format", str(kind), TYPES)
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    wrapped = given.get("json_schema")
    check(
        isinstance(wrapped, Mapping) and isinstance(wrapped.get("schema"), Mapping | bool),
        "response_format of type json_schema needs json_schema.schema, the JSON schema as an object.",
    )
    return Grammar.json_schema(wrapped["schema"])


def read_structured_outputs(given: Any) -> Grammar:
    """Return the grammar of `structured_outputs`. Raises SettingError or UnknownNameError."""
    check(isinstance(given, Mapping), f"structured_outputs must be an object, got {type(given).__name__}.")
    values = {name: value for name, value in given.items() if value not in (None, False)}
    whitespace = not values.pop(WHITESPACE, False)
    for name in values:
        if name not in CONSTRAINTS:
            raise UnknownNameError("field of structured_outputs", name, (*CONSTRAINTS, WHITESPACE))
    check(len(values) == 1, f"structured_outputs needs one of {', '.join(CONSTRAINTS)}, got {', '.join(values) or 'none'}.")
    [(kind, value)] = values.items()
    if kind == "json":
        return Grammar.json_schema(value, whitespace=whitespace)
    if kind == "json_object":
        return Grammar.json_schema({"type": "object"}, whitespace=whitespace)
    if kind == "choice":
        check(isinstance(value, list), f"The choice must be a list of texts, got {type(value).__name__}.")
        return Grammar.choice(value)
    if not isinstance(value, str):
        raise SettingError(f"The {kind} must be text, got {type(value).__name__}.")
    return Grammar.regex(value) if kind == "regex" else Grammar.lark(value)

"""Grammars: exact constraints on the text of a response, as JSON schemas, regular expressions, choices or Lark grammars."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cards.errors import SettingError, check, require

# Without this option, llguidance allows only the tokens of its own tokenization where the text is forced.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'
WHITESPACE = r"( |\n {0,40})"
LONGEST = 300  # characters of an error message
POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on a response: its whole text must belong to the language of this grammar.

    Create one with `json_schema`, `json_object`, `regex`, `choice` or `lark`. `text` is a grammar in the Lark dialect of
    llguidance, which matches it. Raises SettingError if the grammar is invalid or has a feature that cannot be matched
    exactly, and MissingExtraError without llguidance.
    """

    text: str
    kind: str = "grammar"  # in error messages

    def __post_init__(self) -> None:
        require("Structured output", "structured", "llguidance")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise SettingError(f"The {self.kind} has a lone surrogate (half of a character): remove it.") from error
        if problem := _problem(self.text):
            where = POSITION.match(problem)
            place = f" (line {where[1]}, column {where[2]})" if where and self.kind == "grammar" else ""
            reason = POSITION.sub("", problem).removeprefix("failed to compile JSON schema: ")
            raise SettingError(f"The {self.kind} cannot be used{place}: {reason}.")

    @classmethod
    def json_schema(cls, schema: str | bool | Mapping[str, Any], *, whitespace: bool = True) -> Grammar:
        """Return the grammar of the JSON texts that a JSON schema describes, with its properties in the order of the schema.

        `whitespace` allows a space, or a newline with an indentation, between the tokens of JSON. More of it is never allowed,
        because small LMs would write it without end. Keywords that cannot be matched exactly are refused.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise SettingError(f"The JSON schema is not JSON: {error}.") from error
        check(isinstance(schema, bool | Mapping), f"A JSON schema must be an object or a boolean, got {type(schema).__name__}.")
        if schema is not False:
            rule = {"whitespace_pattern": WHITESPACE} if whitespace else {"whitespace_flexible": False}
            schema = {**(schema if isinstance(schema, Mapping) else {}), "x-guidance": rule}
        try:
            text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SettingError(f"The JSON schema has a value that JSON cannot represent: {error}.") from error
        return cls(f"start: %json {text}", "JSON schema")

    @classmethod
    def json_object(cls) -> Grammar:
        """Return the grammar of all JSON objects."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Return the grammar of the texts that a regular expression matches as a whole.

        The syntax is that of Rust's regex crate, without lookaround. \\d, \\w and \\s stand for ASCII characters.
        """
        require("Structured output", "structured", "llguidance")
        from llguidance import regex_to_lark

        check(bool(pattern), "The regular expression must not be empty.")
        return cls(f"start: /{regex_to_lark(pattern, 'dws')}/", "regular expression")

    @classmethod
    def choice(cls, options: Iterable[str]) -> Grammar:
        """Return the grammar of these texts."""
        texts = list(options)
        check(bool(texts) and all(isinstance(text, str) and text for text in texts), f"A choice needs texts, got {texts!r}.")
        return cls("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts), "choice")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Return a grammar in the Lark dialect of llguidance (its first rule is `start`), or in the GBNF of llama.cpp."""
        require("Structured output", "structured", "llguidance")
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            return cls(any_to_lark(text))
        except SettingError:
            raise
        except Exception as error:  # the converter raises errors of many types
            raise SettingError(f"The grammar cannot be converted from GBNF to Lark: {error}.") from error


@lru_cache(256)
def _problem(text: str) -> str | None:
    """Return what is wrong with a grammar, in one line, or None."""
    from llguidance import LLMatcher

    invalid, messages = LLMatcher.validate_grammar_with_warnings(text + OPTIONS)
    if not invalid:
        return None
    message = re.split(r"\n +1 \| ", messages[0])[0]
    message = " ".join(message.split()).rstrip(".")
    return message if len(message) <= LONGEST else message[:LONGEST] + "..."

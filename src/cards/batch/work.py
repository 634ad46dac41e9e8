"""Decoding of one batch row: its prompt, its settings and its outcome."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from difflib import get_close_matches
from itertools import islice
from typing import Any

from cards.batch.rows import Fields, RawRow, line, parsed
from cards.decoder import Decoder, PromptLike
from cards.errors import (
    CardsError,
    MismatchError,
    MissingExtraError,
    PromptError,
    SettingError,
    UnavailableError,
    UnknownNameError,
    check,
)
from cards.events import Result
from cards.prompts import PromptOptions, read_messages
from cards.response_format import read_response_format, read_structured_outputs
from cards.rewards.constraints import broken
from cards.sampling import seed_at
from cards.settings import STOP, setting
from cards.shaping import NO_SHAPING, Shaping
from cards.usage import Usage

PROMPT_FIELDS = ("prompt", "messages", "conversations")
FORMATS = {"response_format": read_response_format, "structured_outputs": read_structured_outputs}
CHECKED = 100  # rows whose fields are checked before models are loaded
RESULT_FIELDS = ("text", "reward", "finish_reason", "seed", "method")
COSTS = ("lm_prefill_tokens", "lm_decoded_tokens", "lm_wasted_tokens", "rm_calls", "rm_tokens")
VERDICTS = ("accepted", "rejected", "fallbacks")
FATAL_ERRORS = (SettingError, MismatchError, UnavailableError)
CONTENT_STATUSES = (400, 413, 422)  # HTTP statuses for a request that a server rejects because of its content


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of row `number`: a line for the output or for the file of failed rows, and the usage.

    broken: whether the response does not meet a constraint of the reward.
    """

    number: int
    line: bytes
    failed: bool = False
    usage: Usage = field(default_factory=Usage)
    broken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions(PromptOptions):
    """Options for reading, decoding and writing rows. Equal options and models give equal rows."""

    prompt_field: str | None = setting(
        None, help="Name of the field with the prompt (text or messages).", unset=f"the first of {', '.join(PROMPT_FIELDS)}"
    )
    seed: int = setting(
        0, help="Random seed. The seeds of the rows are derived from it, unless they have their own.", at_least=0
    )
    max_tokens: int = setting(128, help="Maximum number of new tokens, unless the row has its own.", at_least=1)
    stop: tuple[str, ...] = setting((), help=STOP, escapes=True)
    full: bool = setting(False, help="Write complete results, with segments and usage.")
    prefix: str = setting("", help="Prefix for the names of added fields.")

    @property
    def row(self) -> str:
        """The name of the output field that holds the row number."""
        return f"{self.prefix}row"

    def prompt_in(self, fields: Fields) -> Any:
        """Return the value of the field with the prompt, or None."""
        names = (self.prompt_field,) if self.prompt_field else PROMPT_FIELDS
        return next((fields[name] for name in names if fields.get(name) is not None), None)

    def check_names(self, number: int, fields: Fields) -> None:
        """Raise SettingError if row `number` of the input already uses the name of an output field."""
        added = [item.name for item in dataclass_fields(Result)] if self.full else [*RESULT_FIELDS, "usage"]
        names = [f"{self.prefix}{name}" for name in ("row", *added)]
        if conflicts := [name for name in names if name in fields and name != "seed"]:
            raise SettingError(
                f"Row {number} of the input already has the output fields {', '.join(conflicts)}. Rename them in the input, or "
                "add a prefix to the names of the output fields with --prefix, for instance --prefix response_."
            )

    def check_rows(self, rows: Iterable[RawRow]) -> None:
        """Check the fields of the first rows, before models are loaded. Raises SettingError if no row has a prompt."""
        found: dict[str, Any] = {}
        prompts = 0
        for number, raw in enumerate(islice(rows, CHECKED)):
            with suppress(PromptError):  # an error of this row only
                fields = parsed(raw)
                self.check_names(number, fields)
                prompts += self.prompt_in(fields) is not None
                found |= fields
        if found and not prompts:
            wanted = self.prompt_field or " or ".join(PROMPT_FIELDS)
            near = get_close_matches(wanted, found, 1) or [
                name for name, value in found.items() if isinstance(value, str | list)
            ]
            hint = f"Give the name of the field with the prompt, for instance --prompt-field {near[0]!r}." if near else ""
            raise SettingError(f"The rows have no field {wanted}. Their fields: {', '.join(found)}. {hint}".strip())


@dataclass(frozen=True, slots=True)
class RowDecoder:
    """A decoder for batch rows. Row i has the seed `seed_at(options.seed, i)` unless it gives one.

    `shaping` applies to all rows. The grammar of a row's `response_format` or `structured_outputs` precedes its own.
    """

    decoder: Decoder
    options: BatchOptions
    shaping: Shaping = NO_SHAPING

    async def decode(self, number: int, raw: RawRow) -> Outcome:
        """Decode a row. An error that only this row causes becomes a failed outcome.

        What a server refuses because of its content (RejectedRequestError, with a status) is the row's own.
        """
        try:
            fields = parsed(raw)
            seed = _whole_number(fields, "seed", seed_at(self.options.seed, number), 0)
            max_tokens = _whole_number(fields, "max_tokens", self.options.max_tokens, 1)
            prompt = self.prompt(fields)
            options: dict[str, Any] = {"stop": self.options.stop, "shaping": self.shaped(fields)}
            result = await self.decoder.agenerate(prompt, seed=seed, max_tokens=max_tokens, **options)
            written = line(fields | self.result_fields(number, fields, result))
            return Outcome(number, written, usage=result.usage, broken=bool(broken(self.decoder.reward, result.text)))
        except CardsError as error:
            if is_fatal(error):
                raise
            row = raw.decode(errors="replace").strip() if isinstance(raw, bytes) else raw
            details = {"type": type(error).__name__, "message": str(error)}
            return Outcome(number, _failure({self.options.row: number, "error": details, "input": row}), failed=True)

    def prompt(self, fields: Fields) -> PromptLike:
        """Return the prompt of a row. Raises PromptError if the row has none."""
        prompt = self.options.prompt_in(fields)
        if isinstance(prompt, list):
            prompt = read_messages(prompt)
        elif not isinstance(prompt, str):
            wanted = self.options.prompt_field or " or ".join(PROMPT_FIELDS)
            raise PromptError(f"A row needs {wanted}: a text or a list of messages. Its fields: {', '.join(fields) or 'none'}.")
        return self._options(fields).prompt(prompt, self.decoder.engine.chats)

    def _options(self, fields: Fields) -> BatchOptions:
        """Return the options with the system message and the template variables of the row. Raises PromptError."""
        system, arguments = fields.get("system"), fields.get("chat_template_kwargs")
        if not (system or arguments):  # an empty cell or a missing one
            return self.options
        if not isinstance(system or "", str):
            raise PromptError(f"system must be text, got {system!r}.")
        if isinstance(arguments, dict):  # the columns of a Parquet row have None for absent keys
            arguments = {name: value for name, value in arguments.items() if value is not None}
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
        try:
            own = replace(self.options, system=system or self.options.system, chat_template_kwargs=text)
            return replace(own, chat_template_kwargs=json.dumps(self.options.arguments | own.arguments))
        except SettingError as error:
            raise PromptError(f"The row has a wrong system or chat_template_kwargs: {error}") from error

    def shaped(self, fields: Fields) -> Shaping:
        """Return the shaping of a row. Raises PromptError if its format is wrong."""
        found = [(read, given) for name, read in FORMATS.items() if (given := _parsed(fields.get(name)))]
        try:
            check(len(found) <= 1, f"The row has {' and '.join(FORMATS)}: give one of them.")
            grammars = [read(given) for read, given in found]
        except MissingExtraError:
            raise
        except (SettingError, UnknownNameError) as error:
            raise PromptError(f"The row has a wrong format: {error}") from error
        return replace(self.shaping, grammar=grammars[0]) if grammars else self.shaping

    def result_fields(self, number: int, fields: Fields, result: Result) -> Fields:
        """Return the fields that the output adds to a row. Raises SettingError if the input already uses their names."""
        if self.options.full:
            added = result.to_dict()
        else:
            usage = {name: getattr(result.usage, name) for name in (*COSTS, *VERDICTS)}
            added = {name: getattr(result, name) for name in RESULT_FIELDS} | {"usage": usage}
        self.options.check_names(number, fields)
        return {f"{self.options.prefix}{name}": value for name, value in ({"row": number} | added).items()}


def is_fatal(error: CardsError) -> bool:
    """Return whether an error ends the batch because other rows would fail in the same way.

    A request that a server rejects because of its content is an error of its row only.
    """
    return isinstance(error, FATAL_ERRORS) and getattr(error, "status", None) not in CONTENT_STATUSES


def _parsed(given: Any) -> Any:
    """Return a value that can be JSON in a text, as in CSV. Text that is not JSON stays as it is."""
    if isinstance(given, str) and given.strip():
        with suppress(ValueError):
            return json.loads(given)
    return given


def _whole_number(fields: Fields, name: str, default: int, minimum: int) -> int:
    value: Any = fields.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str) and value.strip().isdecimal():  # CSV has only text
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise PromptError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")
    return value


def _failure(fields: Fields) -> bytes:
    try:
        return line(fields)
    except PromptError:  # JSON cannot represent some Parquet values
        return line(fields | {"input": str(fields["input"])})

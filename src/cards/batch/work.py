"""What a batch does with one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cards.batch.rows import Fields, Raw, line, parsed
from cards.decoder import Decoder, PromptLike
from cards.errors import CardsError, MismatchError, PromptError, SettingError, UnavailableError
from cards.events import Result
from cards.prompts import shaped
from cards.usage import Usage

OWN = ("text", "reward", "finish_reason", "seed", "method")
COSTS = ("lm_prefill_tokens", "lm_decoded_tokens", "lm_wasted_tokens", "rm_calls", "rm_tokens")
ENDS = (SettingError, MismatchError, UnavailableError)
OF_CONTENT = (400, 413, 422)
VERDICTS = ("accepted", "rejected", "fallbacks")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of row `number`: a line for the output, or for the file of failed rows, and what it cost."""

    number: int
    line: bytes
    failed: bool = False
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How rows are read, answered and written; of two batches with the same shape and models, rows are the same."""

    prompt_field: str | None = None  # None: `prompt`, else `messages`
    raw: bool = False
    seed: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    full: bool = False
    prefix: str = ""

    @property
    def row(self) -> str:
        """The field with a row's number."""
        return f"{self.prefix}row"


@dataclass(frozen=True, slots=True)
class Work:
    """Answers rows. Row number i has seed `shape.seed` + i unless it names one itself."""

    decoder: Decoder
    shape: BatchOptions

    async def answer(self, number: int, raw: Raw) -> Outcome:
        """Raises SettingError, MismatchError or UnavailableError where the fault is not the row's own.

        What a server refuses because of its content (RejectedRequestError, with a status) is the row's own.
        """
        try:
            fields = parsed(raw)
            seed = _whole(fields, "seed", self.shape.seed + number, 0)
            most = _whole(fields, "max_tokens", self.shape.max_tokens, 1)
            prompt = self.prompt(fields)
            result = await self.decoder.agenerate(prompt, seed=seed, max_tokens=most, stop=self.shape.stop)
            return Outcome(number, line(fields | self.own(number, fields, result)), usage=result.usage)
        except CardsError as error:
            if ends(error):
                raise
            asked = raw.decode(errors="replace").strip() if isinstance(raw, bytes) else raw
            told = {"type": type(error).__name__, "message": str(error)}
            return Outcome(number, _failure({self.shape.row: number, "error": told, "input": asked}), failed=True)

    def prompt(self, fields: Fields) -> PromptLike:
        """Raises PromptError if there is none."""
        name = self.shape.prompt_field or ("prompt" if fields.get("prompt") is not None else "messages")
        found = fields.get(name)
        if isinstance(found, str):
            return shaped(found, "raw" if self.shape.raw else "auto", self.decoder.engine.chats)
        if not isinstance(found, Sequence):
            wanted = self.shape.prompt_field or "prompt or messages"
            raise PromptError(
                f"A row needs {wanted}, a text or a list of messages; this one has {', '.join(fields) or 'nothing'}."
            )
        return found

    def own(self, number: int, fields: Fields, result: Result) -> Fields:
        """The fields that the output adds. Raises SettingError if the input has others of their names."""
        if self.shape.full:
            own = result.to_dict()
        else:
            usage = {name: getattr(result.usage, name) for name in (*COSTS, *VERDICTS)}
            own = {name: getattr(result, name) for name in OWN} | {"usage": usage}
        own = {f"{self.shape.prefix}{name}": value for name, value in ({"row": number} | own).items()}
        if taken := [name for name in own if name in fields and name != "seed"]:
            raise SettingError(
                f"Row {number} of the input has {', '.join(taken)}, which the output has too: rename it there, or give the "
                "output's own fields other names with --prefix, as in --prefix answer_."
            )
        return own


def ends(error: CardsError) -> bool:
    """Whether other rows would meet the same. What a server refuses because of its content is the row's own."""
    return isinstance(error, ENDS) and getattr(error, "status", None) not in OF_CONTENT


def _whole(fields: Fields, name: str, default: int, least: int) -> int:
    value: Any = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PromptError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return value


def _failure(fields: Fields) -> bytes:
    try:
        return line(fields)
    except PromptError:  # a row of Parquet that JSON cannot hold
        return line(fields | {"input": str(fields["input"])})

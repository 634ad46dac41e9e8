"""Prompts of a study, read from files and public data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cards.errors import CardsError, PromptError, SettingError, require
from cards.events import Message
from cards.prompts import check_messages
from cards.study.datasets import DATASETS, load

T = TypeVar("T")
TINY = Path(__file__).parent / "tiny.jsonl"
FIELDS = ("prompt", "instruction", "goal", "messages", "chosen")  # the first of them that a row has holds the prompt
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt: text, or messages that end with a user message. `number` counts from 0; `group` is as in DataSet."""

    number: int
    id: str
    prompt: str | tuple[Message, ...]
    group: str = ""


def read(source: str) -> list[PromptRecord]:
    """Return all prompts of a source: `tiny`, a data set, a file with the rows of a data set (`NAME=FILE`), or a file.

    Files are those of a batch: .jsonl, .json, .csv or text with one prompt per line, each optionally compressed (.gz), or
    .parquet. Raises PromptError if the source cannot be read, and MissingExtraError for Parquet without pyarrow.
    """
    name, _, file = source.partition("=")
    if name in DATASETS and (file or not Path(source).exists()):
        records = _of_dataset(name, rows(Path(file)) if file else load(name), source)
    else:
        records = parsed(rows(TINY if source == "tiny" else Path(source)), _record, "prompt", source)
    if len({record.id for record in records}) < len(records):
        raise PromptError(f"Two prompts in {source!r} have the same id.")
    return records


def sample(records: Sequence[PromptRecord], limit: int | None, seed: int) -> list[PromptRecord]:
    """Draw `limit` prompts at random and return them in their original order. A larger limit extends a smaller one.

    The first rows of a data set often come from one part of it: those of HH-RLHF all belong to one subset.
    """
    draws = random.Random(seed)
    order = sorted((draws.random(), index) for index in range(len(records)))
    return [records[index] for index in sorted(index for _, index in order[:limit])]


def parsed(rows: Sequence[Any], parse: Callable[[int, Any], T], kind: str, source: str) -> list[T]:
    """Return `parse(number, row)` for each row. Raises PromptError, naming the row by its kind, or if there are no rows."""
    results = []
    for number, row in enumerate(rows):
        try:
            results.append(parse(number, row))
        except CardsError as error:
            raise PromptError(f"{kind.capitalize()} number {number} of {source!r}: {error}") from error
    if not results:
        raise PromptError(f"There are no {kind}s in {source!r}.")
    return results


def _of_dataset(name: str, rows: Sequence[Any], source: str) -> list[PromptRecord]:
    """Return each prompt once, renumbered, because preference data repeat prompts."""
    data, unique = DATASETS[name], dict[str, tuple[str | tuple[Message, ...], str]]()
    for prompt, group in parsed(rows, lambda _, row: (content(data.prompt(row)), data.group_of(row)), "row", source):
        unique.setdefault(json.dumps(prompt), (prompt, group))
    return [PromptRecord(number, str(number), *prompt_and_group) for number, prompt_and_group in enumerate(unique.values())]


def _record(number: int, row: Any) -> PromptRecord:
    fields = row if isinstance(row, Mapping) else {}
    return PromptRecord(number, str(fields.get("id", number)), content(row), str(fields.get("group") or ""))


def content(row: Any) -> str | tuple[Message, ...]:
    """Return the prompt of a row: text, or messages up to the last user message. Raises PromptError if there is none."""
    if isinstance(row, Mapping):
        prompt = next((row[name] for name in FIELDS if row.get(name)), None)
        if prompt is None:
            raise PromptError(f"a row needs one of the fields {', '.join(FIELDS)}, got {', '.join(row) or 'no fields'}.")
    else:
        prompt = row
    if isinstance(prompt, str):
        if not TURN.match(prompt):
            if not prompt.strip():
                raise PromptError("the prompt is empty.")
            return prompt
        _, *parts = TURN.split(prompt)
        prompt = [Message(role=ROLES[who], content=text.strip()) for who, text in zip(parts[::2], parts[1::2], strict=True)]
    if not isinstance(prompt, list | tuple):
        raise PromptError(f"a prompt must be text or a list of messages, got {type(prompt).__name__}.")
    turns = list(prompt)
    while turns and turns[-1].get("role") == "assistant":  # the response that the data set has
        turns.pop()
    return check_messages(turns)


def rows(path: Path, kind_of_rows: str = "prompts") -> list[Any]:
    """Return the rows of a file. Raises PromptError, naming the rows by their kind, if the file cannot be read."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        if kind == ".parquet":
            require(f"The file {str(path)!r}", "batch", "pyarrow")
            from pyarrow import parquet

            return list(parquet.read_table(path).to_pylist())
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        if kind == ".json" and text.lstrip().startswith("["):
            return list(json.loads(text))
        if kind in (".jsonl", ".json"):  # many files of JSON Lines are named .json
            return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, EOFError) as error:
        known = f", or one of {', '.join(['tiny', *DATASETS])}" if kind_of_rows == "prompts" else ""
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"The {kind_of_rows} {str(path)!r} cannot be read ({reason}). Give a file{known}.") from error
    except SettingError:  # pyarrow is missing
        raise
    except ValueError as error:
        raise PromptError(f"The {kind_of_rows} {str(path)!r} are not {kind[1:].upper() or 'text'}: {error}") from error
    return list(csv.DictReader(io.StringIO(text))) if kind == ".csv" else [t for t in text.splitlines() if t.strip()]

"""Prompts of a bench: from files, from the data sets of the field, and in the form that a model knows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cards.errors import CardsError, PromptError
from cards.events import Message
from cards.prompts import check_messages
from cards.study.datasets import DATASETS, load

OWN = Path(__file__).parent / "tiny.jsonl"
FIELDS = ("prompt", "instruction", "goal", "messages", "chosen")  # the first that a row has is its prompt
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """Prompt number `number` (from 0) of a list: text, or messages that end with the user's; `group` as in DataSet."""

    number: int
    id: str
    prompt: str | tuple[Message, ...]
    group: str = ""


def read(source: str) -> list[PromptRecord]:
    """All prompts of `tiny`, of a data set, of one in a file (`NAME=FILE`), or of a file of our own form. Raises PromptError.

    Files are .jsonl, .json or .csv, or have a prompt a line; any may be compressed (.gz).
    """
    name, _, file = source.partition("=")
    if name in DATASETS and (file or not Path(source).exists()):
        records = _of_dataset(name, rows(Path(file)) if file else load(name), source)
    else:
        records = _of_file(rows(OWN if source == "tiny" else Path(source)), source)
    if not records:
        raise PromptError(f"There are no prompts in {source!r}.")
    if len({record.id for record in records}) < len(records):
        raise PromptError(f"Two prompts in {source!r} have the same id.")
    return records


def sample(records: Sequence[PromptRecord], limit: int | None, seed: int) -> list[PromptRecord]:
    """`limit` of the prompts, drawn with the seed from all of them, in their own order; a larger limit adds to a smaller.

    The first rows of a data set are often of one part of it: those of HH-RLHF are all of one subset.
    """
    draws = random.Random(seed)
    order = sorted((draws.random(), place) for place in range(len(records)))
    return [records[place] for place in sorted(place for _, place in order[:limit])]


def _of_dataset(name: str, rows: Sequence[Any], source: str) -> list[PromptRecord]:
    """Each prompt once (preference data repeat theirs), numbered anew."""
    data, found = DATASETS[name], dict[str, tuple[str | tuple[Message, ...], str]]()
    for number, row in enumerate(rows):
        try:
            prompt = content(data.prompt(row))
            found.setdefault(json.dumps(prompt), (prompt, data.group_of(row)))
        except CardsError as error:
            raise PromptError(f"Row number {number} of {source!r}: {error}") from error
    return [PromptRecord(number, str(number), *one) for number, one in enumerate(found.values())]


def _of_file(rows: Sequence[Any], source: str) -> list[PromptRecord]:
    records = []
    for number, row in enumerate(rows):
        given = row if isinstance(row, Mapping) else {}
        try:
            name, group = str(given.get("id", number)), str(given.get("group") or "")
            records.append(PromptRecord(number, name, content(row), group))
        except CardsError as error:
            raise PromptError(f"Prompt number {number} of {source!r}: {error}") from error
    return records


def content(row: Any) -> str | tuple[Message, ...]:
    """What a row asks: its text or messages, up to the last turn of the user. Raises PromptError."""
    if isinstance(row, Mapping):
        found = next((row[name] for name in FIELDS if row.get(name)), None)
        if found is None:
            raise PromptError(f"a row needs one of the fields {', '.join(FIELDS)}, and this has {', '.join(row) or 'none'}.")
    else:
        found = row
    if isinstance(found, str):
        if not TURN.match(found):
            if not found.strip():
                raise PromptError("the prompt is empty.")
            return found
        _, *parts = TURN.split(found)
        found = [Message(role=ROLES[who], content=said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if not isinstance(found, list | tuple):
        raise PromptError(f"a prompt is text or a list of messages, not {type(found).__name__}.")
    turns = list(found)
    while turns and turns[-1].get("role") == "assistant":  # the answer that the data set has
        turns.pop()
    return check_messages(turns)


def rows(path: Path) -> list[Any]:
    """What is in a file. Raises PromptError."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        if kind == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        if kind == ".json":
            return list(json.loads(text))
    except (OSError, EOFError) as error:
        known = ", ".join(["tiny", *DATASETS])
        why = getattr(error, "strerror", None) or error
        raise PromptError(f"Prompts {str(path)!r} cannot be read ({why}). Give a file, or one of {known}.") from error
    except ValueError as error:
        raise PromptError(f"Prompts {str(path)!r} are no {kind[1:].upper() or 'text'}: {error}") from error
    return list(csv.DictReader(io.StringIO(text))) if kind == ".csv" else [t for t in text.splitlines() if t.strip()]

"""Rows of a batch's input: JSON Lines, gzipped or not, or Parquet, one after another."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from cards.errors import MissingExtraError, PromptError, SettingError

Raw = bytes | dict[str, Any]  # a line of JSON, or what a row of Parquet holds
Fields = dict[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
AT_ONCE = 256  # rows of Parquet in memory


@dataclass(frozen=True, slots=True)
class Survey:
    """How many rows a file has, and a fingerprint of its content."""

    rows: int
    digest: str


def suffix(path: Path) -> str:
    """The one of SUFFIXES that a file has. Raises SettingError."""
    found = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if found is None:
        raise SettingError(f"A batch reads and writes {', '.join(SUFFIXES)} files, and {str(path)!r} is none by its name.")
    return found


def survey(path: Path) -> Survey:
    """Reads the file once. Raises SettingError if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with _readable(path):
        if suffix(path) == ".parquet":
            count = arrow("parquet").ParquetFile(path).metadata.num_rows
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            with lines(path) as file:
                for line in file:
                    digest.update(line)
                    count += not line.isspace()
    return Survey(count, digest.hexdigest())


def rows(path: Path) -> Iterator[Raw]:
    """The rows in order; blank lines are none. Raises SettingError if the file cannot be read."""
    with _readable(path):
        if suffix(path) == ".parquet":
            with arrow("parquet").ParquetFile(path) as file:
                for batch in file.iter_batches(AT_ONCE):
                    yield from batch.to_pylist()
        else:
            with lines(path) as file:
                yield from (line for line in file if not line.isspace())


class RowReader:
    """Rows by their number (from 0): quick where numbers rise, from the file's beginning where they do not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows, self._next = rows(path), 0

    def __getitem__(self, number: int) -> Raw:
        if number < self._next:
            self._rows, self._next = rows(self.path), 0
        raw = next(islice(self._rows, number - self._next, None))
        self._next = number + 1
        return raw


def parsed(raw: Raw) -> Fields:
    """The fields of a row. Raises PromptError if it is no JSON object."""
    if isinstance(raw, dict):
        return raw
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise PromptError(f"The line is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise PromptError(f"A row is a JSON object with a prompt, not {type(fields).__name__}.")
    return fields


def line(fields: Fields) -> bytes:
    """A row as a line of JSON; dates and decimals become text. Raises PromptError for what JSON cannot hold."""
    return json.dumps(fields, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        raise PromptError("A column of bytes cannot be carried through: leave it out of the input.")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@contextmanager
def lines(path: Path) -> Iterator[BinaryIO]:
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors
        why = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise SettingError(f"{str(path)!r} cannot be read: {why}.") from error


def arrow(module: str) -> Any:
    """Import a module of pyarrow. Raises MissingExtraError if it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow", "batch") from error

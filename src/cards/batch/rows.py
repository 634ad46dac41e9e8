"""Rows of a batch's input, read one at a time from JSON Lines (plain or gzip) or Parquet."""

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

RawRow = bytes | dict[str, Any]  # a line of JSON, or the columns of a Parquet row
Fields = dict[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
PARQUET_BATCH = 256  # rows in memory


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The number of rows of a file, and a digest of its content."""

    rows: int
    digest: str


def suffix(path: Path) -> str:
    """Return which of SUFFIXES a file name ends with. Raises SettingError if it ends with none of them."""
    match = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if match is None:
        raise SettingError(f"Input and output of a batch must end in {' or '.join(SUFFIXES)}, got {str(path)!r}.")
    return match


def summarize(path: Path) -> FileSummary:
    """Count the rows of a file and hash its content. Raises SettingError if the file cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with _readable(path):
        if suffix(path) == ".parquet":
            count = arrow("parquet").ParquetFile(path).metadata.num_rows
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        else:
            with lines(path) as file:
                for line in file:
                    digest.update(line)
                    count += not line.isspace()
    return FileSummary(count, digest.hexdigest())


def rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows in order, without blank lines. Raises SettingError if the file cannot be read."""
    with _readable(path):
        if suffix(path) == ".parquet":
            with arrow("parquet").ParquetFile(path) as file:
                for batch in file.iter_batches(PARQUET_BATCH):
                    yield from batch.to_pylist()
        else:
            with lines(path) as file:
                yield from (line for line in file if not line.isspace())


class RowReader:
    """Access to rows by number (from 0). Rising numbers are fast; a lower number rereads the file from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows, self._next = rows(path), 0

    def __getitem__(self, number: int) -> RawRow:
        if number < self._next:
            self._rows, self._next = rows(self.path), 0
        raw = next(islice(self._rows, number - self._next, None))
        self._next = number + 1
        return raw


def parsed(raw: RawRow) -> Fields:
    """Return the fields of a row. Raises PromptError if the row is not a JSON object."""
    if isinstance(raw, dict):
        return raw
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise PromptError(f"The line is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise PromptError(f"A row must be a JSON object with a prompt, got {type(fields).__name__}.")
    return fields


def line(fields: Fields) -> bytes:
    """Return a row as a line of JSON. Dates and decimals become text. Raises PromptError for bytes."""
    return json.dumps(fields, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        raise PromptError("JSON cannot represent a column of bytes: remove the column from the input.")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def lines(path: Path) -> BinaryIO:
    """Open a file of lines for reading, and decompress .gz files."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise SettingError(f"{str(path)!r} cannot be read: {reason}.") from error


def arrow(module: str) -> Any:
    """Import a module of pyarrow. Raises MissingExtraError if pyarrow is not installed."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow", "batch") from error

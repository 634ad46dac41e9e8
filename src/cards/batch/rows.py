"""Rows of a batch's input, read one at a time from JSON Lines, JSON, CSV, text (each plain or gzip) or Parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast

from cards.errors import MissingExtraError, PromptError, SettingError

RawRow = bytes | dict[str, Any]  # a line of JSON, or the columns of a row
Fields = dict[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
INPUT_SUFFIXES = (*SUFFIXES, ".json", ".json.gz", ".csv", ".csv.gz", ".txt", ".txt.gz")
ARRAY = re.compile(rb"\s*\[\s*[{\]]")  # the beginning of an array of objects; a text can begin with [INST]
PARQUET_BATCH = 256  # rows in memory
EXCESS = "(cells without a column)"


@dataclass(frozen=True, slots=True)
class FileSummary:
    """The number of rows of a file, and a digest of its content."""

    rows: int
    digest: str


def suffix(path: Path, known: tuple[str, ...] = SUFFIXES) -> str:
    """Return which of the known suffixes a file name ends with. Raises SettingError if it ends with none of them."""
    match = next((suffix for suffix in known if path.name.endswith(suffix)), None)
    if match is None:
        kind = "output" if known is SUFFIXES else "input"
        raise SettingError(f"The {kind} of a batch must end in {' or '.join(known)}, got {str(path)!r}.")
    return match


@contextmanager
def stored(source: Path) -> Iterator[Path]:
    """Yield the path of the input. Standard input (`-`) is copied to a temporary file of JSON or text.

    It is JSON Lines if it begins with {, and JSON if it begins with an array of objects.
    """
    if str(source) != "-":
        yield source
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder, "input")
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with copy.open("rb") as file:
            head = file.read(4096)
        kind = ".json" if ARRAY.match(head) else ".jsonl" if head.lstrip().startswith(b"{") else ".txt"
        yield copy.rename(copy.with_suffix(kind))


def summarize(path: Path) -> FileSummary:
    """Count the rows of a file and hash its content. Raises SettingError if the file cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    count = 0
    with _readable(path):
        if suffix(path, INPUT_SUFFIXES) == ".parquet":
            count = arrow("parquet").ParquetFile(path).metadata.num_rows
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        else:
            with lines(path) as file:
                for line in file:
                    digest.update(line)
                    count += not line.isspace()
        if suffix(path, INPUT_SUFFIXES).removesuffix(".gz") in (".csv", ".json"):  # one row can have several lines
            count = sum(1 for _ in rows(path))
    return FileSummary(count, digest.hexdigest())


def rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows in order, without blank lines. Raises SettingError if the file cannot be read."""
    with _readable(path):
        kind = suffix(path, INPUT_SUFFIXES).removesuffix(".gz")
        if kind == ".parquet":
            with arrow("parquet").ParquetFile(path) as file:
                for batch in file.iter_batches(PARQUET_BATCH):
                    yield from batch.to_pylist()
        elif kind in (".jsonl", ".json"):
            with lines(path) as file:
                if kind == ".json" and file.read(4096).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"["):
                    file.seek(0)
                    yield from (json.dumps(row).encode() for row in json.load(file))
                else:  # many files of JSON Lines are named .json
                    file.seek(0)
                    yield from (line for line in file if not line.isspace())
        else:
            with io.TextIOWrapper(lines(path), encoding="utf-8-sig", newline="" if kind == ".csv" else None) as text:
                if kind == ".csv":
                    yield from csv.DictReader(text, restkey=EXCESS)
                else:
                    yield from ({"prompt": line.rstrip("\n")} for line in text if not line.isspace())


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
        if EXCESS in raw:
            raise PromptError(f"The row has more cells than the CSV file has columns: {raw[EXCESS]}.")
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
    except (OSError, EOFError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise SettingError(f"{str(path)!r} cannot be read: {reason}.") from error


def arrow(module: str) -> Any:
    """Import a module of pyarrow. Raises MissingExtraError if pyarrow is not installed."""
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow", "batch") from error

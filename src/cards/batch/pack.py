"""From answers in JSON Lines to the form that was asked for."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cards.batch.rows import arrow, line, lines, parsed, rows, suffix
from cards.errors import SettingError
from cards.files import atomic_write

CHUNK = 4096  # rows in memory, and in a row group


def pack(answers: Path, out: Path) -> None:
    """Write the answers as gzip or Parquet, a piece at a time. Raises SettingError for what Parquet cannot hold."""
    with atomic_write(out) as file:
        if suffix(out) == ".parquet":
            _parquet(answers, file)
        else:
            with lines(answers) as plain, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                packed.writelines(plain)
    answers.unlink()


def unpack(out: Path, answers: Path) -> None:
    """The way back."""
    with atomic_write(answers) as file:
        file.writelines(line(parsed(raw)) for raw in rows(out))


def _parquet(answers: Path, file: Any) -> None:
    pa, parquet = arrow(""), arrow("parquet")
    try:
        schemas = [pa.schema([])] + [pa.Table.from_pylist(chunk).schema for chunk in _chunks(answers)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with parquet.ParquetWriter(file, schema) as writer:
            for chunk in _chunks(answers):
                writer.write_table(pa.Table.from_pylist(chunk, schema))
    except pa.ArrowException as error:
        why = str(error).strip().splitlines()[0]
        raise SettingError(
            f"The rows cannot be written as Parquet: {why} They are all in {str(answers)!r}; give the columns one type, or "
            "write .jsonl."
        ) from error


def _chunks(answers: Path) -> Iterator[list[dict[str, Any]]]:
    found = rows(answers)
    while chunk := [parsed(raw) for raw in islice(found, CHUNK)]:
        yield chunk

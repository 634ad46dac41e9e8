"""Conversion of responses between JSON Lines and the format of the output, gzip or Parquet."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from cards.batch.rows import arrow, line, lines, parsed, rows, suffix
from cards.errors import SettingError
from cards.files import atomic_write

CHUNK = 4096  # rows in memory, and in a Parquet row group


def pack(responses: Path, out: Path) -> None:
    """Write responses as gzip or Parquet, one chunk at a time. Raises SettingError if Parquet cannot represent them."""
    with atomic_write(out) as file:
        if suffix(out) == ".parquet":
            _parquet(responses, file)
        else:
            with lines(responses) as plain, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
                packed.writelines(plain)
    responses.unlink()


def unpack(out: Path, responses: Path) -> None:
    """Write a packed output as JSON Lines."""
    with atomic_write(responses) as file:
        file.writelines(line(parsed(raw)) for raw in rows(out))


def _parquet(responses: Path, file: Any) -> None:
    pa, parquet = arrow(""), arrow("parquet")
    try:
        schemas = [pa.schema([])] + [pa.Table.from_pylist(chunk).schema for chunk in _chunks(responses)]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        with parquet.ParquetWriter(file, schema) as writer:
            for chunk in _chunks(responses):
                writer.write_table(pa.Table.from_pylist(chunk, schema))
    except pa.ArrowException as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(
            f"The rows cannot be written as Parquet: {reason} All of them are in {str(responses)!r}. Give each column a single "
            "type, or choose a .jsonl output."
        ) from error


def _chunks(responses: Path) -> Iterator[list[dict[str, Any]]]:
    remaining = rows(responses)
    while chunk := [parsed(raw) for raw in islice(remaining, CHUNK)]:
        yield chunk

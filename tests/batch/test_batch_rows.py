"""Three input formats give the same rows."""

from __future__ import annotations

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from cards.batch.rows import RowReader, line, parsed, rows, summarize
from cards.errors import PromptError, SettingError

ROWS: list[dict[str, Any]] = [{"prompt": f"Frage {i}?", "n": i, "who": ["ä", None]} for i in range(1000)]


@pytest.fixture(params=["in.jsonl", "in.jsonl.gz", "in.parquet"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = tmp_path / request.param
    text = "\n\n".join(json.dumps(row) for row in ROWS).encode()  # blank lines, and none at the end
    if made.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), made, row_group_size=300)
    else:
        made.write_bytes(gzip.compress(text) if made.suffix == ".gz" else text)
    return made


def test_every_row_once_and_in_order(path: Path) -> None:
    assert [parsed(raw) for raw in rows(path)] == ROWS
    assert summarize(path).rows == 1000


def test_rows_by_number(path: Path) -> None:
    reader = RowReader(path)
    for number in (0, 1, 5, 700, 3, 4, 999, 999):
        assert parsed(reader[number]) == ROWS[number]


def test_a_change_of_content_is_seen(path: Path) -> None:
    before = summarize(path)
    assert summarize(path) == before
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist([*ROWS[:-1], ROWS[0]]), path)
    else:
        text = "\n".join(json.dumps(row) for row in [*ROWS[:-1], ROWS[0]]).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    after = summarize(path)
    assert (after.rows, after.digest != before.digest) == (1000, True)


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "no.txt", "broken.jsonl.gz", "broken.parquet"])
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"\x1f\x8b no")
    with pytest.raises(SettingError, match=name):
        summarize(tmp_path / name)


@pytest.mark.parametrize("raw", [b"{", b"[1]", b'"text"', b"\xff\xfe"])
def test_a_line_that_is_no_object_is_told(raw: bytes) -> None:
    with pytest.raises(PromptError, match=r"not JSON|JSON object"):
        parsed(raw)


def test_values_that_json_does_not_have_become_text() -> None:
    day = datetime.date(2026, 1, 31)
    assert json.loads(line({"day": day, "sum": Decimal("1.50"), "text": "ä"})) == {
        "day": "2026-01-31",
        "sum": "1.50",
        "text": "ä",
    }
    with pytest.raises(PromptError, match="bytes"):
        line({"image": b"\x00"})

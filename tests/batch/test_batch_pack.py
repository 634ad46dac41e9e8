"""The output format does not change the responses."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.mock_batch import read, write
from pyarrow import parquet

from cards.batch import pack
from cards.errors import SettingError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "CHUNK", 3)


def answers(path: Path, **more: Any) -> list[dict[str, Any]]:
    rows = [{"row": i, "text": "ä" * i, "reward": None if i < 4 else i / 2, **more} for i in range(8)]
    write(path, rows)
    return rows


def test_parquet(tmp_path: Path) -> None:
    rows = answers(tmp_path / "rows.jsonl", usage={"lm_decoded_tokens": 3}, tags=["a"])
    pack.pack(tmp_path / "rows.jsonl", tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist() == rows
    assert parquet.read_schema(tmp_path / "out.parquet").field("reward").type == pa.float64()  # first seen without any
    assert parquet.read_metadata(tmp_path / "out.parquet").num_row_groups == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    pack.unpack(tmp_path / "out.parquet", tmp_path / "again.jsonl")
    assert read(tmp_path / "again.jsonl") == rows


def test_gzip(tmp_path: Path) -> None:
    answers(tmp_path / "rows.jsonl")
    plain = (tmp_path / "rows.jsonl").read_bytes()
    pack.pack(tmp_path / "rows.jsonl", tmp_path / "out.jsonl.gz")
    assert gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()) == plain
    pack.unpack(tmp_path / "out.jsonl.gz", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == plain


def test_columns_of_two_types_are_told_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [{"row": i, "mark": i if i < 4 else "none"} for i in range(8)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(SettingError, match=r"cannot be written as Parquet: .* All of them are in .*rows\.jsonl"):
        pack.pack(path, tmp_path / "out.parquet")
    assert read(path) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    pack.pack(tmp_path / "rows.jsonl", tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0

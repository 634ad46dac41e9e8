"""Files that belong to one process, and that are never half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from cards.errors import SettingError
from cards.files import atomic_write, locked


def test_two_processes_cannot_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with (
        locked(path, "bench"),
        pytest.raises(SettingError, match=r"Another bench is writing to .*out\.jsonl"),
        locked(path, "bench"),
    ):
        pass
    with locked(path, "bench"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"new", "text"])  # type: ignore[list-item]
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out", b"old")]
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out", b"new")]

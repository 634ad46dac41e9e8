"""A session runs the work missing from its journal, records errors, and keeps finished work when interrupted."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from cards.errors import RewardError, SettingError, UnreachableTargetWarning
from cards.study.session import Session, opened

HEADER = {"model": "tiny"}


def key(row: dict[str, Any]) -> int:
    return int(row["n"])


def note(item: int, error: Exception) -> str:
    return f"item {item}: {error}"


async def squares(session: Session, count: int, fails: int | None = None) -> list[dict[str, Any]]:
    async def square(n: int) -> dict[str, Any]:
        if n == fails:
            raise RewardError("no square")
        return {"n": n, "square": n * n}

    return await session.complete({n: n for n in range(count)}, square, key, 2, "squares", note)


def test_only_what_is_missing_is_done_and_all_rows_come_back_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "j.jsonl"
    with opened(path, HEADER, "test") as session:
        rows = session.run(squares(session, 4, fails=1), "squares")
    assert [row["n"] for row in rows] == [0, 2, 3]
    assert session.errors == ["item 1: no square"]
    told = " ".join(capsys.readouterr().err.split())
    assert f"added 3 squares to {path}, which had 0" in told.replace("\n", "")
    assert "error: item 1: no square" in told
    with opened(path, HEADER, "test") as session:
        rows = session.run(squares(session, 5), "squares")
    assert [row["square"] for row in rows] == [0, 1, 4, 9, 16]
    assert [row["n"] for row in session.rows] == [0, 2, 3, 1, 4]
    assert "added 2 squares to" in " ".join(capsys.readouterr().err.split())
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()[1:]] == [0, 2, 3, 1, 4]


def test_without_a_note_an_error_ends_the_work() -> None:
    session = Session()

    async def fails(item: int) -> None:
        raise RewardError(f"not {item}")

    with pytest.raises(RewardError, match="not 1"):
        session.run(session.each([1, 2], fails, 1, "failing"))
    assert session.errors == []


def test_an_interrupt_keeps_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j.jsonl"

    def interrupted(work: Any) -> Any:
        asyncio.run(work)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(path, HEADER, "test") as session:
        session.run(squares(session, 3), "squares", interrupted)
    told = " ".join(capsys.readouterr().err.split())
    assert f"interrupted: 3 squares are in {path}; run the same command again to resume" in told
    with opened(path, HEADER, "test") as session:
        assert len(session.rows) == 3


def test_warnings_are_lines_and_unreachable_targets_are_left_to_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    async def warned() -> None:
        warnings.warn("watch out", stacklevel=1)
        warnings.warn("out of reach", UnreachableTargetWarning, stacklevel=1)

    Session().run(warned())
    assert capsys.readouterr().err == "warning: watch out\n"


def test_two_sessions_do_not_write_to_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with (
        opened(path, HEADER, "bench"),
        pytest.raises(SettingError, match="Another bench is writing to"),
        opened(path, HEADER, "bench"),
    ):
        pass
    with pytest.raises(SettingError, match="was made with model 'tiny', now 'big'"), opened(path, {"model": "big"}, "bench"):
        pass

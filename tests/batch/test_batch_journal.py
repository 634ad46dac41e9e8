"""A batch can be resumed wherever its process was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.mock_batch import read

from cards.batch.journal import BatchFiles, BatchJournal, MergeJournal, count_rows, failed_rows, settle
from cards.batch.rows import line
from cards.batch.work import Outcome
from cards.errors import SettingError

BAD = {3, 5, 6}


def outcome(number: int, *, bad: bool, text: str = "ä") -> Outcome:
    return Outcome(number, line({"row": number, "text": text}), failed=bad)


@pytest.fixture
def files(tmp_path: Path) -> BatchFiles:
    made = BatchFiles(tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl")
    with BatchJournal(made) as journal:
        for number in range(8):
            journal.write(outcome(number, bad=number in BAD))
            assert sum(count_rows(made)) == number + 1  # at once, without closing
    return made


def rows(files: BatchFiles) -> tuple[list[int], list[int]]:
    return [row["row"] for row in read(files.responses)], [row["row"] for row in read(files.failures)]


def test_rows_are_where_they_belong(files: BatchFiles) -> None:
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    assert count_rows(files) == (5, 3)
    assert list(failed_rows(files)) == [3, 5, 6]


def test_a_line_cut_anywhere_is_dropped_and_written_again(files: BatchFiles) -> None:
    whole = files.responses.read_bytes()
    last = len(line({"row": 7, "text": "ä"}))
    for cut in range(1, last + 1):
        files.responses.write_bytes(whole[:-cut])
        assert count_rows(files) == (4, 3)
        with BatchJournal(files) as journal:
            journal.write(outcome(7, bad=False))
        assert files.responses.read_bytes() == whole


def test_lines_that_somebody_took_out_are_missed(files: BatchFiles) -> None:
    lines = files.responses.read_bytes().splitlines(keepends=True)
    files.responses.write_bytes(b"".join(lines[1:]))
    with pytest.raises(SettingError, match="hold 7 rows but should hold 8"):
        count_rows(files)
    files.responses.write_bytes(b'{"other": 1}\n')
    with pytest.raises(SettingError, match="not written by `cards batch`"):
        count_rows(files)


def test_what_failed_is_put_in_its_place(files: BatchFiles) -> None:
    with MergeJournal(files) as merge:
        for number in (3, 5, 6):
            merge.write(outcome(number, bad=number == 5))
    assert rows(files) == ([0, 1, 2, 3, 4, 6, 7], [5])
    with MergeJournal(files) as merge:
        merge.write(outcome(5, bad=False))
    assert rows(files) == (list(range(8)), [])
    assert not files.failures.exists()


def test_a_merge_that_is_broken_off_changes_nothing(files: BatchFiles) -> None:
    with pytest.raises(TypeError), MergeJournal(files) as merge:
        list(map(merge.write, [outcome(3, bad=False), outcome("no number", bad=False)]))  # type: ignore[arg-type]
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    assert len(list(files.responses.parent.iterdir())) == 2


def test_a_merge_killed_between_its_two_files_is_finished(files: BatchFiles) -> None:
    new = [path.with_name(path.name + ".new") for path in (files.responses, files.failures)]
    new[0].write_bytes(b"half")
    new[1].write_bytes(b"half")
    settle(files)  # killed while writing
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    files.responses.write_bytes(b"".join(line({"row": i, "text": "ä"}) for i in range(8) if i != 5))
    new[1].write_bytes(line({"row": 5, "text": "ä"}))
    settle(files)  # killed after the first was put in its place
    assert count_rows(files) == (7, 1)
    assert not any(path.exists() for path in new)

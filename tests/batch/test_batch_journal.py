"""What is written can be gone on with wherever a process was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.mock_batch import read

from cards.batch.journal import BatchJournal, Files, Merge, done, failed, settle
from cards.batch.rows import line
from cards.batch.work import Outcome
from cards.errors import SettingError

BAD = {3, 5, 6}


def outcome(number: int, *, bad: bool, text: str = "ä") -> Outcome:
    return Outcome(number, line({"row": number, "text": text}), failed=bad)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl")
    with BatchJournal(made) as journal:
        for number in range(8):
            journal.write(outcome(number, bad=number in BAD))
            assert sum(done(made)) == number + 1  # at once, without closing
    return made


def rows(files: Files) -> tuple[list[int], list[int]]:
    return [row["row"] for row in read(files.answers)], [row["row"] for row in read(files.failures)]


def test_rows_are_where_they_belong(files: Files) -> None:
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    assert done(files) == (5, 3)
    assert list(failed(files)) == [3, 5, 6]


def test_a_line_cut_anywhere_is_dropped_and_written_again(files: Files) -> None:
    whole = files.answers.read_bytes()
    last = len(line({"row": 7, "text": "ä"}))
    for cut in range(1, last + 1):
        files.answers.write_bytes(whole[:-cut])
        assert done(files) == (4, 3)
        with BatchJournal(files) as journal:
            journal.write(outcome(7, bad=False))
        assert files.answers.read_bytes() == whole


def test_lines_that_somebody_took_out_are_missed(files: Files) -> None:
    lines = files.answers.read_bytes().splitlines(keepends=True)
    files.answers.write_bytes(b"".join(lines[1:]))
    with pytest.raises(SettingError, match="hold 7 rows and should hold 8"):
        done(files)
    files.answers.write_bytes(b'{"other": 1}\n')
    with pytest.raises(SettingError, match="none of `cards batch`"):
        done(files)


def test_what_failed_is_put_in_its_place(files: Files) -> None:
    with Merge(files) as merge:
        for number in (3, 5, 6):
            merge.write(outcome(number, bad=number == 5))
    assert rows(files) == ([0, 1, 2, 3, 4, 6, 7], [5])
    with Merge(files) as merge:
        merge.write(outcome(5, bad=False))
    assert rows(files) == (list(range(8)), [])
    assert not files.failures.exists()


def test_a_merge_that_is_broken_off_changes_nothing(files: Files) -> None:
    with pytest.raises(TypeError), Merge(files) as merge:
        list(map(merge.write, [outcome(3, bad=False), outcome("no number", bad=False)]))  # type: ignore[arg-type]
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    assert len(list(files.answers.parent.iterdir())) == 2


def test_a_merge_killed_between_its_two_files_is_finished(files: Files) -> None:
    new = [path.with_name(path.name + ".new") for path in (files.answers, files.failures)]
    new[0].write_bytes(b"half")
    new[1].write_bytes(b"half")
    settle(files)  # killed while writing
    assert rows(files) == ([0, 1, 2, 4, 7], [3, 5, 6])
    files.answers.write_bytes(b"".join(line({"row": i, "text": "ä"}) for i in range(8) if i != 5))
    new[1].write_bytes(line({"row": 5, "text": "ä"}))
    settle(files)  # killed after the first was put in its place
    assert done(files) == (7, 1)
    assert not any(path.exists() for path in new)

"""What a batch has written so far: answers and failed rows, both in the order of the input, a line a row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cards.batch.work import Outcome
from cards.errors import SettingError


@dataclass(frozen=True, slots=True)
class Files:
    """Where lines go. `answers` is the output itself, or what it will be made of; `row` is the field with a row's number."""

    answers: Path
    failures: Path
    row: str = "row"

    def number(self, line: bytes) -> int:
        return int(json.loads(line)[self.row])


class BatchJournal:
    """Takes outcomes in order. Each is with the operating system when `write` returns, so killing the process loses none."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> BatchJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._open.values():
            file.close()

    def write(self, outcome: Outcome) -> None:
        path = self.files.failures if outcome.failed else self.files.answers
        if path not in self._open:
            self._open[path] = path.open("ab", buffering=0)
        self._open[path].write(outcome.line)


def done(files: Files) -> tuple[int, int]:
    """How many rows are answered and how many failed; what a killed process wrote half of is cut off.

    As lines are written in order, the last one says how far the batch is. Raises SettingError if lines are missing.
    """
    counts = []
    last = -1
    for path in (files.answers, files.failures):
        found = _repaired(path)
        counts.append(found[0])
        if found[1]:
            try:
                last = max(last, files.number(found[1]))
            except (ValueError, KeyError, TypeError):
                raise SettingError(
                    f"The last line of {str(path)!r} is none of `cards batch`: put the file back, or aside."
                ) from None
    if sum(counts) != last + 1:
        raise SettingError(
            f"{str(files.answers)!r} and {str(files.failures)!r} hold {sum(counts)} rows and should hold {last + 1}: somebody "
            "else wrote to them. Put them back as they were, or begin anew in another file."
        )
    return counts[0], counts[1]


def failed(files: Files) -> Iterator[int]:
    """Numbers of the failed rows."""
    if files.failures.exists():
        with files.failures.open("rb") as file:
            yield from (files.number(line) for line in file)


def _repaired(path: Path) -> tuple[int, bytes]:
    """The number of lines and the last one, after a line that is not whole has been cut off."""
    if not path.exists():
        return 0, b""
    count = end = 0
    last = b""
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, last, end = count + 1, line, end + len(line)
        file.truncate(end)
    return count, last


class Merge(BatchJournal):
    """Takes new outcomes of rows that had failed, and puts them in their places among the others when it closes well.

    Both files are written anew beside the old ones. `settle` finishes or drops what a killed process left of that.
    """

    def __init__(self, files: Files) -> None:
        self.old = files
        super().__init__(Files(_new(files.answers), _new(files.failures), files.row))
        settle(files)
        for path in (self.files.answers, self.files.failures):  # in this order, which `settle` relies on
            self._open[path] = path.open("xb")
        self._before = files.answers.open("rb") if files.answers.exists() else None
        self._line = self._before.readline() if self._before else b""

    def write(self, outcome: Outcome) -> None:
        self._copy(outcome.number)
        super().write(outcome)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._copy(None)
        if self._before:
            self._before.close()
        super().__exit__(kind, error, trace)
        if kind is None:
            self.files.answers.replace(self.old.answers)
        settle(self.old)

    def _copy(self, until: int | None) -> None:
        while self._before and self._line and (until is None or self.files.number(self._line) < until):
            self._open[self.files.answers].write(self._line)
            self._line = self._before.readline()


def settle(files: Files) -> None:
    """After a merge: its answers are in place and its failures follow, or nothing of it stays."""
    answers, failures = _new(files.answers), _new(files.failures)
    if answers.exists():
        answers.unlink()
        failures.unlink(missing_ok=True)
    elif failures.exists():
        failures.replace(files.failures)
    if files.failures.exists() and not files.failures.stat().st_size:
        files.failures.unlink()


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")

"""The files of a running batch: responses and failed rows, each in input order with one row per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cards.batch.work import Outcome
from cards.errors import SettingError


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """The files of a batch in JSON Lines. `responses` is the output, or is packed into it at the end.

    `row` is the name of the field that holds the row number.
    """

    responses: Path
    failures: Path
    row: str = "row"

    @property
    def all(self) -> tuple[Path, ...]:
        """All files, including those of an unfinished merge."""
        return self.responses, self.failures, _new(self.responses), _new(self.failures)

    def number(self, line: bytes) -> int:
        return int(json.loads(line)[self.row])


class BatchJournal:
    """A writer of outcomes, which must come in order. `write` does not buffer, so killing the process loses no outcome."""

    def __init__(self, files: BatchFiles) -> None:
        self.files = files
        self._open: dict[Path, BinaryIO] = {}

    def __enter__(self) -> BatchJournal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._open.values():
            file.close()

    def write(self, outcome: Outcome) -> None:
        path = self.files.failures if outcome.failed else self.files.responses
        if path not in self._open:
            self._open[path] = path.open("ab", buffering=0)
        self._open[path].write(outcome.line)


def count_rows(files: BatchFiles) -> tuple[int, int]:
    """Return how many rows succeeded and how many failed. A line that a killed process wrote in part is removed.

    Lines are written in order, so the largest row number must equal the number of lines minus one. Raises SettingError if
    lines are missing.
    """
    counts = []
    highest = -1
    for path in (files.responses, files.failures):
        count, last_line = _repair(path)
        counts.append(count)
        if last_line:
            try:
                highest = max(highest, files.number(last_line))
            except (ValueError, KeyError, TypeError):
                raise SettingError(
                    f"The last line of {str(path)!r} was not written by `cards batch`. Restore the file, or move it away."
                ) from None
    if sum(counts) != highest + 1:
        raise SettingError(
            f"{str(files.responses)!r} and {str(files.failures)!r} hold {sum(counts)} rows but should hold {highest + 1}: "
            "another program changed them. Restore them, or choose another output."
        )
    return counts[0], counts[1]


def failed_rows(files: BatchFiles) -> Iterator[int]:
    """Yield the numbers of the failed rows."""
    if files.failures.exists():
        with files.failures.open("rb") as file:
            yield from (files.number(line) for line in file)


def _repair(path: Path) -> tuple[int, bytes]:
    """Remove an incomplete last line. Return the number of lines and the last line."""
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


class MergeJournal(BatchJournal):
    """A writer of new outcomes for failed rows, which merges them with the other rows in input order.

    Both files are written to new paths and replace the old files if the context exits without an error. `settle` finishes
    or discards the merge of a killed process.
    """

    def __init__(self, files: BatchFiles) -> None:
        self.old = files
        super().__init__(BatchFiles(_new(files.responses), _new(files.failures), files.row))
        settle(files)
        for path in (self.files.responses, self.files.failures):  # `settle` relies on this order
            self._open[path] = path.open("xb")
        self._before = files.responses.open("rb") if files.responses.exists() else BytesIO()
        self._line = self._before.readline()

    def write(self, outcome: Outcome) -> None:
        self._copy(outcome.number)
        super().write(outcome)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._copy(None)
        self._before.close()
        super().__exit__(kind, error, trace)
        if kind is None:
            self.files.responses.replace(self.old.responses)
        settle(self.old)

    def _copy(self, until: int | None) -> None:
        """Copy the old responses with row numbers below `until` (None: all that remain)."""
        while self._line and (until is None or self.files.number(self._line) < until):
            self._open[self.files.responses].write(self._line)
            self._line = self._before.readline()


def settle(files: BatchFiles) -> None:
    """Finish a merge whose responses are in place, or discard it."""
    responses, failures = _new(files.responses), _new(files.failures)
    if responses.exists():
        responses.unlink()
        failures.unlink(missing_ok=True)
    elif failures.exists():
        failures.replace(files.failures)
    if files.failures.exists() and not files.failures.stat().st_size:
        files.failures.unlink()


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".new")

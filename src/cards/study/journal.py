"""The journal of a study, in JSON Lines: a header with what its rows have in common, then one row a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cards.errors import SettingError
from cards.files import atomic_write, check_format

Row = dict[str, Any]
MARK = "cards-bench"  # the header's key in the first line
FORMAT = 1  # format 0 has the same rows, and no version in its first line


class Journal:
    """The rows of a file. `append` writes a row at once; `rewrite` replaces the whole file in one step.

    Without a path the rows are in memory only.
    """

    def __init__(self, path: Path | None, header: dict[str, Any], rows: list[Row] | None = None) -> None:
        self.path, self.header, self.rows = path, header, rows or []

    @classmethod
    def open(cls, path: Path, header: dict[str, Any]) -> Journal:
        """Open the journal at `path`, or begin it. Raises SettingError if it was made with another header.

        A last line that was cut short (the process was killed) is dropped.
        """
        if not path.exists() or not path.stat().st_size:
            journal = cls(path, header)
        else:
            journal = cls.load(path)
            made = journal.header
            wrong = [f"{name} {made.get(name)!r}, now {now!r}" for name, now in header.items() if made.get(name) != now]
            if wrong:
                raise SettingError(
                    f"{str(path)!r} was made with {'; '.join(wrong)}. New rows cannot be mixed with those: choose another "
                    "output, or run with what it was made with."
                )
        try:
            journal.rewrite()
        except OSError as error:
            raise SettingError(f"Results cannot be written to {str(path)!r}: {error.strerror}.") from error
        return journal

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Read a journal. Raises SettingError if the file is none, or has a newer format."""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise SettingError(f"The results {str(path)!r} cannot be read: {error.strerror}.") from error
        try:
            first = json.loads(lines[0])
            header = first[MARK]
        except (ValueError, KeyError, TypeError):
            raise SettingError(f"{str(path)!r} holds no results that `cards` wrote: choose another file.") from None
        check_format(path, first.get("format", 0), FORMAT, "choose another file")
        rows: list[Row] = []
        for number, line in enumerate(lines[1:], 2):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                if number < len(lines):  # not the last one, which may have been cut short
                    raise SettingError(f"Line {number} of {str(path)!r} is damaged: remove it, or the file.") from None
        return cls(path, header, rows)

    def append(self, row: Row) -> None:
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def rewrite(self) -> None:
        """Write all rows; at any time the file is either the old one or the new one."""
        if self.path is not None:
            with atomic_write(self.path) as file:
                file.writelines(_line(row).encode() for row in ({MARK: self.header, "format": FORMAT}, *self.rows))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

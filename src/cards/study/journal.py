"""The journal of a study: a JSON Lines file with a header for all rows, then one row per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cards.errors import SettingError
from cards.files import atomic_write, check_format

Row = dict[str, Any]
MARK = "cards-bench"  # the key of the header in the first line
FORMAT = 1  # format 0 is the same without a version in the first line


class Journal:
    """The header and rows of a journal file. Without a path they are in memory only."""

    def __init__(self, path: Path | None, header: dict[str, Any], rows: list[Row] | None = None) -> None:
        self.path, self.header, self.rows = path, header, rows or []

    @classmethod
    def open(cls, path: Path, header: dict[str, Any]) -> Journal:
        """Open the journal at `path`, or create it. An incomplete last line, left by a killed process, is dropped.

        Raises SettingError if the header differs, or if the file cannot be written.
        """
        if not path.exists() or not path.stat().st_size:
            journal = cls(path, header)
        else:
            journal = cls.load(path)
            stored = journal.header
            changed = [name for name, value in header.items() if stored.get(name) != value]
            differences = [f"{name} {stored.get(name)!r}, now {header[name]!r}" for name in changed]
            if differences:
                raise SettingError(
                    f"{str(path)!r} was made with {'; '.join(differences)}. Choose another output, or use the original values."
                )
        try:
            journal.rewrite()
        except OSError as error:
            raise SettingError(f"Results cannot be written to {str(path)!r}: {error.strerror}.") from error
        return journal

    @classmethod
    def load(cls, path: Path) -> Journal:
        """Read a journal. Raises SettingError if the file is not a journal, is damaged or has a newer format."""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise SettingError(f"The results {str(path)!r} cannot be read: {error.strerror}.") from error
        try:
            first = json.loads(lines[0])
            header = first[MARK]
        except (ValueError, KeyError, TypeError):
            raise SettingError(f"{str(path)!r} holds no results written by `cards`: choose another file.") from None
        check_format(path, first.get("format", 0), FORMAT, "choose another file")
        rows: list[Row] = []
        for number, line in enumerate(lines[1:], 2):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError:
                if number < len(lines):  # the last line may be incomplete
                    raise SettingError(f"Line {number} of {str(path)!r} is damaged: delete the line or the file.") from None
        return cls(path, header, rows)

    def append(self, row: Row) -> None:
        """Add a row, and write it to the file immediately."""
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def rewrite(self) -> None:
        """Write the header and all rows, replacing the file atomically."""
        if self.path is not None:
            with atomic_write(self.path) as file:
                file.writelines(_line(row).encode() for row in ({MARK: self.header, "format": FORMAT}, *self.rows))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

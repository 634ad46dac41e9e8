"""The results file of a bench, JSON Lines: what it was made with, then one answer a line. It can be gone on with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cards.errors import SettingError
from cards.files import replacing

Row = dict[str, Any]
Key = tuple[str, str, str, int]
MARK = "cards-bench"


def key(row: Row) -> Key:
    """What makes an answer the same one: prompt, method, settings, seed."""
    asked = hashlib.sha256(json.dumps(row["prompt"], sort_keys=True).encode()).hexdigest()
    return asked, row["method"], json.dumps(row["settings"], sort_keys=True), row["seed"]


class Results:
    """A results file and its rows. `append` writes a line at once; `rewrite` puts the whole file in its place in one go."""

    def __init__(self, path: Path, header: dict[str, Any], rows: list[Row]) -> None:
        self.path, self.header, self.rows = path, header, rows

    @classmethod
    def open(cls, path: Path, header: dict[str, Any]) -> Results:
        """A new file, or the one that is there if it was made with the same. Raises SettingError if not.

        A last line that was cut short (the process was killed) is dropped.
        """
        if not path.exists() or not path.stat().st_size:
            results = cls(path, header, [])
        else:
            results = cls.load(path)
            made = results.header
            wrong = [f"{name} {made.get(name)!r}, now {now!r}" for name, now in header.items() if made.get(name) != now]
            if wrong:
                raise SettingError(
                    f"{str(path)!r} was made with {'; '.join(wrong)}. New answers cannot be mixed with those: choose another "
                    "output, or run with what it was made with."
                )
        try:
            results.rewrite()
        except OSError as error:
            raise SettingError(f"Results cannot be written to {str(path)!r}: {error.strerror}.") from error
        return results

    @classmethod
    def load(cls, path: Path) -> Results:
        """The file as it stands. Raises SettingError if it is not one of results."""
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise SettingError(f"The results {str(path)!r} cannot be read: {error.strerror}.") from error
        try:
            header = json.loads(lines[0])[MARK]
        except (ValueError, KeyError, TypeError):
            raise SettingError(f"{str(path)!r} holds no results that `cards` wrote: choose another file.") from None
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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def rewrite(self) -> None:
        """Write all rows; the file is the old one or the new one at any time."""
        with replacing(self.path) as file:
            file.writelines(_line(row).encode() for row in ({MARK: self.header}, *self.rows))


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

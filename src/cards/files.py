"""Files that one process writes at a time, that are always whole, and whose format is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from cards.errors import SettingError


def check_format(path: Path, found: object, supported: int, remedy: str) -> None:
    """Raise SettingError unless the format version `found` of a file is at most the `supported` one.

    Files that were written before formats had versions are of format 0. `remedy` says what to do instead of upgrading.
    """
    if type(found) is not int or not 0 <= found <= supported:
        raise SettingError(
            f"{str(path)!r} has format {found!r}, but this version of cards reads formats 0 to {supported} only. Upgrade "
            f"cards-decoding, or {remedy}."
        )


@contextmanager
def alone(path: Path, who: str) -> Iterator[None]:
    """Keeps other processes from a file that `who` writes to. Raises SettingError if one is at it."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingError(f"Another {who} writes to {str(path)!r}: wait for it, or choose another file.") from None
    except OSError as error:
        raise SettingError(f"Results cannot be written to {str(path)!r}: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well: at any time it is the old one or the new one."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)

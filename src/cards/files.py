"""Files: locks, atomic replacement, and checks of the format version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from cards.errors import SettingError


def check_format(path: Path, found: object, supported: int, remedy: str) -> None:
    """Raise SettingError unless the format version `found` is between 0 and `supported`.

    Format 0 means a file without a version. `remedy` completes the message with an alternative to upgrading.
    """
    if type(found) is not int or not 0 <= found <= supported:
        raise SettingError(
            f"{str(path)!r} has format {found!r}, but this version of cards reads formats 0 to {supported} only. Upgrade "
            f"cards-decoding, or {remedy}."
        )


@contextmanager
def locked(path: Path, writer: str) -> Iterator[None]:
    """Lock a file against other processes. `writer` names this process in the message of a SettingError."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingError(f"Another {writer} is writing to {str(path)!r}: wait, or choose another file.") from None
    except OSError as error:
        raise SettingError(f"Results cannot be written to {str(path)!r}: {error.strerror}.") from error
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` atomically if the block succeeds."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)

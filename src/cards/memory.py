"""The memory that this process can still use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cards.errors import check

ROOT = Path("/")
SLOTS, CONTEXT = 32, 2048  # size of a cache, if the memory is large enough
FEWEST, SHORTEST = 4, 512  # a smaller cache has fewer slots down to the first number, then a shorter context
SHARE = 0.4  # of the free memory, for the cache of a model; a reward model may need as much


def memory_at_hand(root: Path = ROOT) -> int | None:
    """Return the available memory of the machine in bytes, at most what its control group leaves; None if it is unknown."""
    limits = [_available(root), *_groups(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known, default=None)


def cache_size(
    slots: int | None, context: int | None, longest: int, per_token: float, free: int | None, per_row: float = 0.0
) -> tuple[int, int]:
    """Return the number of slots and tokens of a cache: those requested, otherwise what fits into the memory.

    longest: maximum context of the model. per_token: bytes of the keys and values of a token. free: bytes of memory, if known.
    per_row: bytes that a slot needs at any length, such as the state of a recurrent model.
    Raises SettingError if the requested cache does not fit.
    """
    check(slots is None or slots >= 1, f"slots must be at least 1, got {slots}.")
    rows, length = slots or SLOTS, context or min(longest, CONTEXT)
    if free is None:
        return rows, length
    while slots is None and rows > FEWEST and rows * (length * per_token + per_row) > SHARE * free:
        rows //= 2
    while context is None and length > SHORTEST and rows * (length * per_token + per_row) > SHARE * free:
        length //= 2
    needed = rows * (length * per_token + per_row)
    check(
        needed <= free,
        f"{rows} slots of {length} tokens need {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free. Use fewer "
        "slots or a shorter context.",
    )
    return rows, length


def check_fits(name: str, needed: int, free: int | None, instead: str) -> None:
    """Raise SettingError if a model needs more bytes than are free. `free` None: unknown; instead: what to choose."""
    check(
        free is None or needed <= free,
        f"Model {name!r} needs {needed / 1e9:.1f} GB, but {(free or 0) / 1e9:.1f} GB of memory are free. {instead}",
    )


def _available(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return _windows()
    try:  # macOS does not say what is available
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError):
        return None


def _windows() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("bytes", ctypes.c_ulonglong * 7))

    status = Status(length=ctypes.sizeof(Status))
    found = ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined, unused-ignore]
    return int(status.bytes[1]) if found else None


def _groups(root: Path) -> Iterator[int]:
    """Yield what the memory limits of control groups leave. File pages that can be dropped do not count as used."""
    for folder, limit, used, dropped in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (root / folder / limit).read_text().strip()
            if most != "max":
                stat = dict(line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
                yield max(0, int(most) - int((root / folder / used).read_text()) + int(stat.get(dropped, 0)))
        except (OSError, ValueError):
            continue

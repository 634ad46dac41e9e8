"""The number of CPU threads for computation, the same for all back ends in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path, PurePosixPath

INTERVAL = 0.2  # seconds between two readings of the load, which counts in units of 0.01 seconds
ROOT = Path("/")


def usable_threads(root: Path = ROOT) -> int:
    """Return the number of CPU cores for this process: those in its affinity, at most the CPU quota of its control groups.

    Hardware threads of one core count once. OMP_NUM_THREADS replaces all of this, as it does in torch.
    `root` is the folder with the files /proc and /sys of Linux.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return min([_cores(root), *(max(1, ceil(quota)) for quota in _quotas(root))])


class Threads:
    """The number of threads for a step: `fixed`, or as many as there are CPUs that other processes leave free, up to `most`.

    The threads of a step wait for each other after each operation. If there are more threads than free CPUs, one of them has
    to wait for its next time slice, so an operation of microseconds takes milliseconds.
    """

    def __init__(self, fixed: int | None = None, most: int | None = None, root: Path = ROOT) -> None:
        self.number = self.most = fixed or most or usable_threads(root)
        self.root, self.adapts = root, fixed is None and self.most > 1 and (root / "proc/stat").exists()
        self.since, self.available = time.monotonic(), self._available()

    def update(self) -> int:
        """Return the number for the next step. Call this before each step."""
        now = time.monotonic()
        if self.adapts and (elapsed := now - self.since) >= INTERVAL:
            before, self.since, self.available = self.available, now, self._available()
            self.number = max(1, min(self.most, round((self.available - before) / elapsed)))
        return self.number

    def _available(self) -> float:
        """Return the seconds of CPU time, since some moment, that this process used or that no process used."""
        if not self.adapts:
            return 0.0
        lines = (self.root / "proc/stat").read_text().splitlines()
        names = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        idle = sum(sum(map(int, line.split()[4:6])) for line in lines if line.partition(" ")[0] in names)
        return idle / os.sysconf("SC_CLK_TCK") + time.process_time()


def _cores(root: Path) -> int:
    """Return the number of cores in the affinity of this process."""
    if not hasattr(os, "sched_getaffinity"):  # macOS and Windows
        return max(1, (os.cpu_count() or 1) // 2)  # leaves out second hardware threads or efficiency cores
    cpus = os.sched_getaffinity(0)
    try:
        return len({(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus})
    except OSError:
        return len(cpus)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs, of the control groups of this process and of the groups around them, in versions 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    groups = {kind: path for _, kinds, path in (line.split(":", 2) for line in lines) for kind in kinds.split(",")}
    for mount in mounts:
        place, _, system = mount.partition(" - ")
        top, folder = place.split()[3:5]
        version, _, options = system.split()[:3]
        if version == "cgroup2":
            group = groups.get("")
        else:
            group = groups.get("cpu") if version == "cgroup" and "cpu" in options.split(",") else None
        if group is None:
            continue
        path = PurePosixPath(group)  # a container sees its own group at the mount point
        inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
        for one in (inside, *inside.parents):
            yield from _quota(root / folder.lstrip("/") / one)


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of one control group, if it has one."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        if limit not in ("max", "-1"):
            yield int(limit) / int(period)
    except (OSError, ValueError):
        return

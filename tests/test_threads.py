"""The number of CPU threads, from files as Linux has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cards.threads import INTERVAL, Threads, usable_threads

CPUS = set(range(8))  # of the affinity
V2 = "30 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
OTHER = "33 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: CPUS, raising=False)


def root(folder: Path, groups: str = "0::/", mounts: str = V2) -> Path:
    """A root folder that names the control groups of this process."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups + "\n")
    (folder / "proc/self/mountinfo").write_text(mounts + "\n")
    return folder


def quota_v1(folder: Path, group: str, quota: int) -> None:
    path = folder / "sys/fs/cgroup/cpu,cpuacct" / group
    path.mkdir(parents=True, exist_ok=True)
    (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (path / "cpu.cfs_period_us").write_text("100000\n")


def test_without_files_of_linux_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_threads(tmp_path) == 8


def test_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for cpu in CPUS:
        path = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert usable_threads(tmp_path) == 4


@pytest.mark.parametrize(
    ("limit", "threads"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)],
)
def test_a_quota_of_version_2_limits_the_threads(tmp_path: Path, limit: str, threads: int) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text(limit)
    assert usable_threads(root(tmp_path)) == threads


def test_the_lowest_quota_of_the_groups_around_counts(tmp_path: Path) -> None:
    for group, limit in {"pod": "300000 100000", "pod/box": "600000 100000", "pod/box/inner": "max 100000"}.items():
        path = tmp_path / "sys/fs/cgroup" / group
        path.mkdir(parents=True)
        (path / "cpu.max").write_text(limit)
    assert usable_threads(root(tmp_path, "0::/pod/box/inner")) == 3


@pytest.mark.parametrize(
    ("group", "top", "where"),
    [
        ("/", "/", ""),
        ("/pod/box", "/", "pod/box"),
        ("/docker/0a1b", "/docker/0a1b", ""),  # a container that sees the groups of the host by name
        ("/docker/0a1b/inner", "/docker/0a1b", "inner"),
        ("/docker/0a1b", "/elsewhere", ""),
    ],
)
def test_a_quota_of_version_1_limits_the_threads(tmp_path: Path, group: str, top: str, where: str) -> None:
    quota_v1(tmp_path, "", -1)
    quota_v1(tmp_path, where, 200000)
    mounts = "\n".join([V1.format(top=top), OTHER])
    assert usable_threads(root(tmp_path, f"5:memory:/a\n4:cpu,cpuacct:{group}\n0::/", mounts)) == 2


def test_omp_num_threads_replaces_cores_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "12,2")
    assert usable_threads(tmp_path) == 12
    monkeypatch.setenv("OMP_NUM_THREADS", "none")
    assert usable_threads(tmp_path) == 8


def test_without_an_affinity_half_of_the_cpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_threads(tmp_path) == 5
    assert Threads(root=tmp_path).update() == 5  # without a load to read


class Machine:
    """A machine with 8 CPUs, whose clock and load the test sets."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.now, self.own, self.idle = root(folder) / "proc/stat", 100.0, 10.0, 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.process_time", lambda: self.own)
        self.spend(0, 0, 0)

    def spend(self, seconds: float, own: float, others: float) -> None:
        """Let time pass in which this process and the others use so many CPUs."""
        self.now, self.own = self.now + seconds, self.own + seconds * own
        self.idle += seconds * (8 - own - others) * os.sysconf("SC_CLK_TCK")
        lines = [f"cpu{cpu} 900 0 0 {self.idle / 8:.0f} 0 0 0 0 0 0" for cpu in CPUS]
        elsewhere = ["cpu 900 0 0 7 7 0 0 0 0 0", f"cpu8 0 0 0 {self.now:.0f} 0 0 0 0 0 0"]  # a sum, and a CPU of others
        self.path.write_text("\n".join([*elsewhere, *lines, "intr 1 2 3"]) + "\n")


def test_threads_leave_out_the_cpus_that_other_processes_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    threads = Threads(root=tmp_path)
    assert threads.update() == 8
    for own, others, expected in [(8, 0, 8), (5, 3, 5), (4, 3, 5), (1, 7, 1), (0.2, 7.8, 1), (1, 0, 8), (0, 0.3, 8)]:
        machine.spend(10, own, others)
        assert threads.update() == expected


def test_the_load_is_read_at_intervals_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    threads = Threads(root=tmp_path)
    machine.spend(INTERVAL / 2, 0, 8)
    assert threads.update() == 8
    machine.spend(INTERVAL, 0, 8)
    assert threads.update() == 1


def test_a_fixed_number_and_a_limit_hold_at_every_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path, monkeypatch)
    fixed, limited = Threads(3, root=tmp_path), Threads(most=2, root=tmp_path)
    for others in (0, 8):
        machine.spend(10, 0, others)
        assert (fixed.update(), limited.update()) == (3, 2 if not others else 1)

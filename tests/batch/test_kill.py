"""A batch that is killed and resumed gives the output of an uninterrupted one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.mock_batch import prompts, read, write
from pyarrow import parquet

from cards.files import locked

PROGRAM = Path(__file__).with_name("slow_batch.py")
ROWS = 150


def start(folder: Path, out: str, *more: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(PROGRAM), "batch", "in.jsonl", out, "--raw", "--max-tokens", "6", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, told = process.communicate()
    return process.returncode, told


def wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(20_000):
        if condition() or process.poll() is not None:
            return
        time.sleep(0.005)
    raise AssertionError("it never came true")


def size(folder: Path, out: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{out.split('.')[0]}.*jsonl"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("batch")
    write(made / "in.jsonl", prompts(ROWS))
    code, told = ended(start(made, "unbroken.jsonl"))
    assert code == 1, told
    return made


@pytest.mark.parametrize("out", ["killed.jsonl", "packed.parquet"])
def test_kill(folder: Path, out: str) -> None:
    chance = random.Random(5)
    whole = size(folder, "unbroken.jsonl")
    killed = 0
    for number in range(3):
        process = start(folder, out)
        goal = (number + chance.random()) / 4 * whole
        wait(lambda goal=goal: size(folder, out) > goal, process)  # type: ignore[misc]
        process.kill()
        killed += ended(process)[0] == -signal.SIGKILL
    assert killed == 3
    assert ended(start(folder, out))[0] == 1
    failures = f"{out.split('.')[0]}.errors.jsonl"
    assert (folder / failures).read_bytes() == (folder / "unbroken.errors.jsonl").read_bytes()
    if out.endswith("parquet"):
        assert parquet.read_table(folder / out).to_pylist() == read(folder / "unbroken.jsonl")
    else:
        assert (folder / out).read_bytes() == (folder / "unbroken.jsonl").read_bytes()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_rows_and_tells_how_to_go_on(folder: Path, sent: signal.Signals) -> None:
    out = f"interrupted{sent}.jsonl"
    process = start(folder, out)
    wait(lambda: size(folder, out) > 2000, process)
    process.send_signal(sent)
    code, told = ended(process)
    assert code == 130, told
    assert "finishing the running rows" in told
    assert f"finished rows are in {out}; run the same command again to resume" in told
    rows, all_rows = read(folder / out), read(folder / "unbroken.jsonl")
    assert 0 < len(rows) < len(all_rows)
    assert rows == all_rows[: len(rows)]
    assert ended(start(folder, out))[0] == 1
    assert (folder / out).read_bytes() == (folder / "unbroken.jsonl").read_bytes()


def test_two_processes_cannot_write_to_one_output(folder: Path) -> None:
    with locked(folder / "shared.jsonl", "batch"):
        code, told = ended(start(folder, "shared.jsonl"))
    assert code == 2
    assert "Another batch is writing to 'shared.jsonl'" in told
    assert not size(folder, "shared.jsonl")

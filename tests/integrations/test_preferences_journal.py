"""However often it is killed, `cards preferences` writes in the end what an unbroken run writes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cards.cli
from cards.engines.mock import MockEngine
from cards.errors import CardsError, RewardError, UnavailableError
from cards.files import locked
from cards.rewards import FunctionReward

PROGRAM = Path(__file__).parents[1] / "batch" / "slow_batch.py"  # the command on a model without weights, which takes its time
SETTINGS = (
    "--method",
    "cards",
    "--target",
    "3",
    "--boundary",
    "fixed:4",
    "--repeats",
    "2",
    "--max-tokens",
    "40",
    "--form",
    "raw",
)
ROWS = 60


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(PROGRAM), "preferences", "--prompts", "in.jsonl", "--out", out, *SETTINGS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate()
    return process.returncode, told


def wait(path: Path, lines: float, process: subprocess.Popen[str]) -> None:
    for _ in range(20_000):
        if process.poll() is not None or (path.exists() and path.read_bytes().count(b"\n") > lines):
            return
        time.sleep(0.005)
    raise AssertionError("it never came so far")


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("preferences")
    rows = [{"prompt": "ab " * (1 + i % 5)} for i in range(ROWS)]
    (made / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, told = ended(start(made, "unbroken.jsonl"))
    assert code == 0, told
    assert len(read(made / "unbroken.jsonl")) > ROWS
    return made


def test_kill(folder: Path) -> None:
    chance, out, journal = random.Random(3), folder / "killed.jsonl", folder / "killed.jsonl.journal"
    killed = 0
    for number in range(2):
        process = start(folder, out.name)
        wait(journal, (number + chance.random()) / 3 * ROWS + 1, process)
        process.kill()
        killed += ended(process)[0] == -signal.SIGKILL
        assert not out.exists()
    assert killed == 2
    with journal.open("a") as file:
        file.write('{"prompt": "ab ", "se')  # as a kill in the middle of a line leaves it
    code, told = ended(start(folder, out.name))
    assert code == 0, told
    assert out.read_bytes() == (folder / "unbroken.jsonl").read_bytes()
    done = [(row["prompt"], row["seed"]) for row in read(journal)[1:]]
    assert len(done) == len(set(done)) == ROWS


def test_an_interrupt_tells_how_to_go_on(folder: Path) -> None:
    process = start(folder, "interrupted.jsonl")
    wait(folder / "interrupted.jsonl.journal", 10, process)
    process.send_signal(signal.SIGINT)
    code, told = ended(process)
    assert code == 130, told
    assert re.search(r"interrupted: \d+ prompts are in interrupted.jsonl.journal; run the same command again to resume", told)
    assert "Traceback" not in told
    assert ended(start(folder, "interrupted.jsonl"))[0] == 0
    assert (folder / "interrupted.jsonl").read_bytes() == (folder / "unbroken.jsonl").read_bytes()


class Here:
    """The command in this process; `trouble` meets some prompts, `loads` counts."""

    trouble: CardsError | None = None
    loads = 0

    def likes(self, prompt: str, response: str) -> float:
        if self.trouble and "ab ab ab" in prompt:
            raise self.trouble
        return response.count("b") - 0.1 * len(response)

    def load(self, name: str, **options: object) -> MockEngine:
        self.loads += 1
        return MockEngine(lambda ids: [0.1, 0.3, 0.2, 0.2, 0.2], ["</s>", *"abc "], end="</s>")

    def __call__(self, prompts: str, out: str, *arguments: str) -> Result:
        return CliRunner().invoke(cards.cli.app, ["preferences", "--prompts", prompts, "--out", out, *arguments])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    made = Here()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cards.placement.load_engine", made.load)
    monkeypatch.setattr("cards.placement.load_reward", lambda name, **options: FunctionReward(made.likes, target=1.0))
    Path("in.txt").write_text("".join("ab " * (1 + i % 4) + "\n" for i in range(12)))
    return made


def test_more_prompts_are_added_and_known_ones_not_asked_again(here: Here) -> None:
    assert here("in.txt", "all.jsonl", *SETTINGS).exit_code == 0
    assert here("in.txt", "few.jsonl", *SETTINGS, "--limit", "5").exit_code == 0
    assert (here.loads, len(read(Path("few.jsonl.journal")))) == (2, 6)
    assert here("in.txt", "few.jsonl", *SETTINGS).exit_code == 0
    assert Path("few.jsonl").read_bytes() == Path("all.jsonl").read_bytes()
    before = Path("few.jsonl.journal").read_bytes()
    again = here("in.txt", "few.jsonl", *SETTINGS)
    assert (again.exit_code, here.loads, Path("few.jsonl.journal").read_bytes()) == (0, 3, before)
    assert "pairs of 12 prompts are in few.jsonl" in again.stderr
    fewer = here("in.txt", "few.jsonl", *SETTINGS, "--limit", "5")  # of what is in the journal
    assert "pairs of 5 prompts" in fewer.stderr
    assert len(read(Path("few.jsonl"))) < len(read(Path("all.jsonl")))


def test_prompts_that_fail_are_tried_again(here: Here) -> None:
    here.trouble = RewardError("too many")
    ran = here("in.txt", "out.jsonl", *SETTINGS)
    assert ran.exit_code == 1
    assert "error: prompt 2: too many" in " ".join(ran.stderr.split())
    assert "6 prompts failed; the first errors are above. Run the same command again to retry them." in ran.stderr
    assert "pairs of 6 prompts are in out.jsonl" in ran.stderr
    here.trouble = None
    assert here("in.txt", "out.jsonl", *SETTINGS).exit_code == 0
    assert here("in.txt", "unbroken.jsonl", *SETTINGS).exit_code == 0
    assert Path("out.jsonl").read_bytes() == Path("unbroken.jsonl").read_bytes()


def test_what_all_prompts_would_meet_ends_the_run(here: Here) -> None:
    here.trouble = UnavailableError("the server is down")
    ran = here("in.txt", "out.jsonl", *SETTINGS)
    assert ran.exit_code == 2
    assert "error: the server is down" in ran.stderr
    assert not Path("out.jsonl").exists()
    here.trouble = None
    assert here("in.txt", "out.jsonl", *SETTINGS).exit_code == 0


def test_files_that_cannot_be_gone_on_with(here: Here) -> None:
    def refused(*arguments: str) -> str:
        ran = here("in.txt", *arguments)
        assert ran.exit_code == 2
        return " ".join(ran.stderr.split())

    Path("mine.jsonl").write_text("precious\n")
    assert "'mine.jsonl' exists without 'mine.jsonl.journal'" in refused("mine.jsonl", *SETTINGS)
    assert Path("mine.jsonl").read_text() == "precious\n"
    assert here("in.txt", "out.jsonl", *SETTINGS).exit_code == 0
    before = Path("out.jsonl").read_bytes()
    for more, told in ((("--gap", "0.5"), "gap 0.0, now 0.5"), (("--beta", "0.5"), "beta 0.7, now 0.5")):
        assert f"'out.jsonl.journal' was made with {told}" in refused("out.jsonl", *SETTINGS, *more)
    Path("out.jsonl.journal").write_text("something else\n")
    assert "'out.jsonl.journal' holds no results" in refused("out.jsonl", *SETTINGS)
    assert Path("out.jsonl").read_bytes() == before
    with locked(Path("shared.jsonl.journal"), "test"):
        assert "Another `cards preferences` is writing to 'shared.jsonl.journal'" in refused("shared.jsonl", *SETTINGS)
    assert here.loads == 1

"""`cards batch` decodes every row exactly once, despite failures and interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_cli import Cards
from pyarrow import parquet

from cards.batch.journal import BatchJournal
from cards.batch.work import Outcome
from cards.errors import RewardError
from cards.profile import Profile
from cards.sampling import seed_at

SMALL = ("--max-tokens", "6", "--max-rejections", "3")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "" if i % 5 == 2 else " I like it" * (1 + i % 3), "topic": i} for i in range(12)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_failures(cli: Cards, here: Path) -> None:
    ran = cli("batch", "in.jsonl", "out.jsonl", "--seed", "4", *SMALL)
    assert ran.exit_code == 1
    assert "10 responses are in out.jsonl" in ran.stderr
    assert "2 rows failed: see out.errors.jsonl" in ran.stderr
    rows, failures = read(here / "out.jsonl"), read(here / "out.errors.jsonl")
    assert [row["row"] for row in rows] == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert [(row["row"], row["error"]["type"]) for row in failures] == [(2, "PromptError"), (7, "PromptError")]
    one = json.loads(cli("generate", "I like it", "--seed", str(seed_at(4, 3)), "--json", *SMALL).stdout)  # row 3
    for name in ("text", "reward", "seed", "method", "finish_reason"):
        assert rows[2][name] == one[name]
    assert sorted(path.name for path in here.iterdir()) == ["in.jsonl", "out.errors.jsonl", "out.jsonl", "out.jsonl.state.json"]


def test_again_there_is_nothing_to_do_and_no_model_is_loaded(cli: Cards, here: Path) -> None:
    cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    before = (here / "out.jsonl").read_bytes()
    cli.loaded.clear()
    ran = cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    assert (ran.exit_code, cli.loaded) == (1, [])
    assert "10 responses are in out.jsonl" in ran.stderr
    assert (here / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_failed_rows_can_be_tried_again(cli: Cards, here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(prompt: str, response: str) -> float:
        if prompt.count("like") == 2 and response:
            raise RewardError("The reward is out.")
        return float(response.count("like"))

    likes = cli.reward.function
    monkeypatch.setattr(cli.reward, "function", picky)
    assert cli("batch", "in.jsonl", name, *SMALL).exit_code == 1
    assert [row["row"] for row in read(here / "out.errors.jsonl")] == [1, 2, 4, 7, 10]
    monkeypatch.setattr(cli.reward, "function", likes)
    assert cli("batch", "in.jsonl", name, *SMALL, "--retry-failed").exit_code == 1
    assert [row["row"] for row in read(here / "out.errors.jsonl")] == [2, 7]
    assert cli("batch", "in.jsonl", "straight.jsonl", *SMALL).exit_code == 1
    straight = {row["row"]: row for row in read(here / "straight.jsonl")}
    if name == "out.parquet":
        rows = parquet.read_table(here / name).to_pylist()
    else:
        import gzip

        data = (here / name).read_bytes()
        rows = [json.loads(line) for line in (gzip.decompress(data) if name.endswith("gz") else data).splitlines()]
    assert [row["row"] for row in rows] == sorted(straight)
    for row in rows:
        if row["row"] in (1, 4, 10):
            assert row == straight[row["row"]]
    assert not list(here.glob("*.partial*")) + list(here.glob("*.new"))


def test_a_batch_goes_on_where_it_was(cli: Cards, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("batch", "in.jsonl", "straight.jsonl", *SMALL)

    class FullDisk(BatchJournal):
        written = 0

        def write(self, outcome: Outcome) -> None:
            if self.written == 4:
                raise OSError(28, "No space left")
            self.written += 1
            super().write(outcome)

    for name in ("out.jsonl", "out.parquet"):
        with monkeypatch.context() as patch:
            patch.setattr("cards.cli.batch.BatchJournal", FullDisk)
            for _ in range(2):
                assert isinstance(cli("batch", "in.jsonl", name, *SMALL).exception, OSError)
        assert cli("batch", "in.jsonl", name, *SMALL).exit_code == 1
        (here / "out.errors.jsonl").unlink()
    assert (here / "out.jsonl").read_bytes() == (here / "straight.jsonl").read_bytes()
    assert parquet.read_table(here / "out.parquet").to_pylist() == read(here / "straight.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--beta", "0.5"], "started with beta 0.7, now 0.5"),
        (["--seed", "1"], "started with seed 0, now 1"),
        (["--method", "vanilla"], "started with reward 'tiny', now 'none'; method 'cards', now 'vanilla'"),
        (["--full"], "started with full False, now True"),
    ],
)
def test_other_settings_are_refused(cli: Cards, here: Path, change: list[str], said: str) -> None:
    cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    before = (here / "out.jsonl").read_bytes()
    settings = ["--max-tokens", "6"] if "vanilla" in change else SMALL
    ran = cli("batch", "in.jsonl", "out.jsonl", *settings, *change)
    assert ran.exit_code == 2
    assert said in ran.stderr
    assert (here / "out.jsonl").read_bytes() == before


def test_another_input_is_refused(cli: Cards, here: Path) -> None:
    cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    lines = (here / "in.jsonl").read_text().splitlines(keepends=True)
    for content in (lines[:-1], [*lines[:-1], '{"prompt": "other"}\n'], [*lines, lines[0]]):
        (here / "in.jsonl").write_text("".join(content))
        ran = cli("batch", "in.jsonl", "out.jsonl", *SMALL)
        assert ran.exit_code == 2
        assert "started with input {'rows': 12" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in.jsonl", "in.jsonl"], "would overwrite its input"),
        (["in.jsonl", "other.jsonl"], "was not written by `cards batch`"),
        (["in.jsonl", "out.csv"], "must end in .jsonl or .jsonl.gz or .parquet"),
        (["no.jsonl", "out.jsonl"], "'no.jsonl' cannot be read: No such file"),
        (["in.jsonl", "other.jsonl/out.jsonl"], "cannot be written"),
        (["in.jsonl", "out.jsonl", "--ray-workers", "2"], "need --ray"),
        (["in.jsonl", "out.jsonl", "--prompt-field", "topic"], ""),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(cli: Cards, here: Path, arguments: list[str], said: str) -> None:
    (here / "other.jsonl").write_text("{}\n")
    ran = cli("batch", *arguments)
    assert ran.exit_code == (2 if said else 1)
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_empty_input(cli: Cards, here: Path) -> None:
    (here / "in.jsonl").write_text("\n")
    assert cli("batch", "in.jsonl", "out.jsonl").exit_code == 0
    assert (here / "out.jsonl").read_bytes() == b""


def test_a_profile_gives_method_settings_and_length(cli: Cards, here: Path) -> None:
    Profile("m", "r", {"target": 0.25, "acceptance": "hard", "alpha": 1.0, "max_rejections": 3}, max_tokens=6).write(
        here / "p.json"
    )
    assert cli("batch", "in.jsonl", "out.jsonl", "--full", "--profile", "p.json").exit_code == 1  # two prompts are empty
    rows = read(here / "out.jsonl")
    assert {segment["threshold"] for row in rows for segment in row["segments"]} == {0.25}
    row = next(row for row in rows if row["row"] == 3)
    one = json.loads(cli("generate", "I like it", "--seed", str(row["seed"]), "--json", "--profile", "p.json").stdout)
    assert one["text"] == row["text"]

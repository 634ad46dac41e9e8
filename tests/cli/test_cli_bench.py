"""`cards bench`: from a command line to a report, and resuming after an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.mock_cli import Cards
from huggingface_hub import HfApi
from typer.testing import CliRunner

import cards
import cards.cli
from cards.engines.loader import check_engine
from cards.study.bench.plan import Arm
from cards.study.bench.run import Bench

SHORT = ("--prompts", "mine.txt", "-m", "vanilla", "-m", "best-of-n:n=2,3", "--max-tokens", "12", "--out", "out.jsonl")


@pytest.fixture
def bench(cli: Cards, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cards:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("I like it\nWell?\nA lot?\n", encoding="utf-8")
    return cli


def test_a_run_makes_results_tables_and_a_plot(bench: Cards) -> None:
    ran = bench("bench", *SHORT)
    assert ran.exit_code == 0, ran.output
    assert "added 9 responses to out.jsonl, which had 0" in ran.stderr
    assert len(Path("out.jsonl").read_text(encoding="utf-8").splitlines()) == 10
    for title in ("gold: mean", "gold against vanilla, paired", "cost per response", "text"):
        assert title in ran.stdout
    for suffix, least in ((".md", 500), (".csv", 500), (".json", 1000), (".png", 20_000), (".svg", 5000)):
        assert Path(f"out{suffix}").stat().st_size > least
    again = bench("bench", *SHORT, "--limit", "2", "--seeds", "2")
    assert "added 6 responses to out.jsonl, which had 9" in again.stderr
    reported = bench("bench", "--report", "out.jsonl", "--baseline", "best-of-n:n=3")
    assert reported.exit_code == 0
    assert "gold against best-of-n:n=3" in reported.stdout
    assert [name for name, _ in bench.loaded] == ["tiny", "tiny", "tiny-gold"] * 2  # a report loads nothing


def test_a_plan_is_read_and_options_replace_its_entries(bench: Cards) -> None:
    Path("plan.toml").write_text('prompts = "mine.txt"\nmethods = ["vanilla"]\nmax_tokens = 9\nslots = 4\n', encoding="utf-8")
    ran = bench("bench", "--plan", "plan.toml", "--limit", "1", "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    header, row = map(json.loads, Path("bench-plan.jsonl").read_text(encoding="utf-8").splitlines())
    assert (header["cards-bench"]["max_tokens"], header["cards-bench"]["slots"], row["id"]) == (9, 4, "2")
    assert bench.loaded[0] == ("tiny", {"device": "cpu", "slots": 4})


def test_what_is_wrong_is_one_line(bench: Cards) -> None:
    for arguments, said in (
        (("--preset", "tinny"), "Unknown preset 'tinny'. Did you mean 'tiny'"),
        (("--preset", "tiny", "--plan", "p.toml"), "not both"),
        (("--out", "out.json"), "--out must end in .jsonl"),
        (("--prompts", "no.txt"), "cannot be read"),
        (("--report", "mine.txt"), "holds no results"),
        (("-m", "cards:beta=-1"), "In the method 'cards:beta=-1'"),
    ):
        ran = bench("bench", *arguments)
        assert (ran.exit_code, len(ran.stderr.splitlines()), bench.loaded) == (2, 1, [])
        assert said in ran.stderr


def test_an_unknown_baseline_is_told_before_anything_is_decoded(bench: Cards) -> None:
    ran = bench("bench", *SHORT, "--baseline", "best-of-n:n=4")
    assert (ran.exit_code, len(Path("out.jsonl").read_text(encoding="utf-8").splitlines())) == (2, 1)
    assert "Unknown baseline 'best-of-n:n=4'. Did you mean" in ran.stderr


def test_results_of_another_model_are_refused(bench: Cards) -> None:
    assert bench("bench", *SHORT).exit_code == 0
    ran = bench("bench", *SHORT, "--gold", "none")
    assert ran.exit_code == 2
    assert "'out.jsonl' was made with gold 'likes', now 'none'" in ran.stderr


def test_failures_are_told_and_the_rest_is_reported(bench: Cards) -> None:
    bench.reward.target = None
    ran = bench("bench", *SHORT, "-m", "rejection-sampling")
    assert ran.exit_code == 2
    assert "error: rejection-sampling, prompt 0, seed 0: No target reward" in ran.stderr
    assert "3 responses failed" in ran.stderr.splitlines()[-1]
    assert "best-of-n:n=3" in ran.stdout


def test_without_matplotlib_the_tables_are_made_all_the_same(bench: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = bench("bench", *SHORT)
    assert ran.exit_code == 0
    assert "warning: The plot needs matplotlib: pip install 'cards-decoding[bench]'." in ran.stderr
    assert Path("out.md").exists()
    assert not Path("out.png").exists()


def test_ctrl_c_says_how_to_go_on(bench: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Bench._decode

    async def pressed(work: Bench, arm: Arm, title: str) -> None:
        await decode(work, arm, title)
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "_decode", pressed)
    ran = bench("bench", *SHORT)
    assert ran.exit_code == 130
    assert "interrupted: 3 responses are in out.jsonl; run the same command again to resume" in ran.stderr


def test_a_model_out_of_reach_is_told_with_what_to_do(bench: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr("cards.placement.check_engine", check_engine)
    ran = bench("bench", "--preset", "llama-7b", "--prompts", "mine.txt")
    assert ran.exit_code == 2
    assert (
        "'argsearch/llama-7b-sft-float32' is neither a folder nor in the cache, and the Hugging Face Hub cannot be reached: no "
        "network. Download it on a machine with network access and give its folder." in ran.stderr
    )
    assert "Unknown model 'tinny'" in bench("bench", "--model", "tinny").stderr


TINY = ("bench", "--limit", "3", "--max-tokens", "16", "-m", "vanilla", "-m", "best-of-n:n=2", "-m", "cards:target=1")


def test_the_tiny_preset_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cards.cli.app, TINY)
    assert ran.exit_code == 0, ran.output
    rows = [json.loads(line) for line in Path("bench-tiny.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    assert len(rows) == 9
    for row in rows:
        assert row["usage"]["flops"] > 0
        assert row["logprob"] < 0
        assert isinstance(row["gold"], float)
    repeated = [r for r in rows if r["method"] == "cards"][1]
    result = cards.Decoder("tiny", "tiny", cards.CARDS(target=1.0))(
        [{"role": "user", "content": repeated["prompt"]}], max_tokens=16, seed=repeated["seed"]
    )
    assert (result.text, list(result.token_ids)) == (repeated["text"], repeated["token_ids"])
    assert repeated["reward"] == pytest.approx(result.reward, abs=1e-3)


def test_a_run_that_is_interrupted_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = [*TINY, "--seeds", "40", "--concurrency", "2"]
    command = [sys.executable, "-c", "from cards.cli import main; main()", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    path = tmp_path / "bench-tiny.jsonl"
    try:
        while not path.exists() or len(path.read_bytes().splitlines()) < 8:  # pytest's own limit ends this
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "run the same command again to resume" in said
    assert "Traceback" not in said
    path.write_bytes(path.read_bytes()[:-3])  # as if it had been killed while it wrote
    kept = [json.loads(line) for line in path.read_bytes().splitlines()[1:-1]]
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(cards.cli.app, [*TINY, "--seeds", "2", "--concurrency", "2"])
    assert ran.exit_code == 0, ran.output
    rows = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    assert [{name: row[name] for name in before} for before, row in zip(kept, rows, strict=False)] == kept
    assert all(isinstance(row["gold"], float) for row in rows)
    assert sum(row["seed"] < 2_000_000 for row in rows) == 18

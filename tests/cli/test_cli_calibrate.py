"""`cards calibrate` writes a profile that other commands read; `cards diagnose` rates a reward."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.mock_cli import Cards

from cards.errors import RewardError
from cards.study.calibrate.report import headline
from cards.study.statistics import Estimate

FEW = ["--answers", "4", "--nodes", "2", "--max-rejections", "5", "--max-tokens", "8", "--max-cost", "4"]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("I like\nit a lot\na lot.\nI\n", encoding="utf-8")
    return "p.txt"


def measured_reward() -> float:
    report = json.loads(Path("profile.report.json").read_text())
    settings = report["profile"]["settings"]
    return next(float(probe["measured"]["reward"]["mean"]) for probe in report["probes"] if probe["settings"] == settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"beta": 0.25, "alpha": 1.0}, "target 0.5, beta 0.25, alpha 1 (soft test)"),
        ({"acceptance": "hard"}, "target 0.5 (hard test)"),
    ],
)
def test_the_headline_names_the_setting_and_what_it_brings(settings: dict[str, Any], named: str) -> None:
    rates = {"reward": Estimate(0.75, 0.5, 1.0), "cost": Estimate(2.5, 2.0, 3.0)}
    result: Any = SimpleNamespace(
        choice=SimpleNamespace(rates=rates),
        trial=None,
        settings={"target": 0.5, **settings},
        responses=[{"rewards": [0.0, 0.5]}],
    )
    finding, doubt = headline(result).split("\n")
    assert (
        finding
        == f"Predicted: CARDS with {named} gets a mean reward of 0.75 at 2.5 times the cost of plain sampling, which gets 0.25."
    )
    assert doubt == "The settings were not tried: set --probes to 1 or more."


def test_another_limit_goes_on(cli: Cards, prompts: str) -> None:
    for limit, said in (("3", "which had 0"), ("4", "which had 9"), ("3", "added 0 samples")):
        ran = cli("calibrate", "--prompts", prompts, *FEW, "--limit", limit, "--target", "0.5", "--probes", "1")
        assert ran.exit_code in (0, 1), ran.stderr
        assert said in ran.stderr


def test_a_profile_is_written_and_read(cli: Cards, prompts: str) -> None:
    ran = cli("calibrate", "--prompts", prompts, *FEW, "--model", "m", "--reward", "r")
    confirmed = json.loads(Path("profile.report.json").read_text())["confirmed"]
    assert ran.exit_code == (not confirmed), ran.stderr
    assert ("recommended: target" if confirmed else "not confirmed: target") in ran.stdout
    assert ran.stdout.startswith("Confirmed: CARDS with target " if confirmed else "Not confirmed: CARDS with target ")
    assert f"reward of {measured_reward():.2f}" in " ".join(ran.stdout.split())
    profile, report = (json.loads(Path(name).read_text()) for name in ("profile.json", "profile.report.json"))
    assert (profile["model"], profile["reward"], profile["max_tokens"]) == ("m", "r", 8)
    assert profile["wish"] == {"max_cost": 4.0}
    assert profile["predicted"]["cost"]["mean"] <= 4
    assert report["profile"] == profile
    assert Path("profile.png").read_bytes().startswith(b"\x89PNG")
    answered = cli("generate", "I like", "--json", "--profile", "profile.json")
    assert answered.exit_code == 0, answered.stderr
    thresholds = [segment["threshold"] for segment in json.loads(answered.stdout)["segments"]]
    assert max(thresholds) <= profile["settings"]["target"] + 1e-9


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-cost", "0.5"], "above 1"),
        (["--top", "20"], "above 0 and below 1"),
        (["--reward", "none"], "needs a reward"),
        (["--out", "p.txt"], "must end in .json"),
        (["--limit", "2", "--max-cost", "1.0001"], "lowest cost"),
        (["--entropy-threshold", "1", "--segment-tokens", "8"], "not both"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], says: str, cli: Cards, prompts: str) -> None:
    ran = cli("calibrate", "--prompts", prompts, *FEW[:-2], *arguments)
    assert ran.exit_code == 2, ran.output
    assert says in ran.stderr
    assert "Traceback" not in ran.output


def test_diagnose_prints_a_verdict(cli: Cards, prompts: str) -> None:
    ran = cli("diagnose", "--prompts", prompts, "--answers", "4", "--max-tokens", "12", "--fixed", "3", "--plot", "d.png")
    assert ran.exit_code == 0, ran.stderr
    assert "segments" in ran.stdout.splitlines()[0]  # the verdict comes first
    assert Path("d.png").exists()
    ran = cli("diagnose", "--prompts", prompts, "--answers", "4", "--max-tokens", "12", "--json")
    assert json.loads(ran.stdout)["verdict"] in ("good", "fair", "poor", "not enough data")
    assert cli("diagnose").exit_code == 2


def test_prompts_without_room_are_left_out_and_a_failing_reward_is_one_line(
    cli: Cards, prompts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(prompts).write_text("I like\nit a lot\n" + 3000 * "a lot " + "\n", encoding="utf-8")
    for command in (
        ["calibrate", "--prompts", prompts, *FEW],
        ["diagnose", "--prompts", prompts, "--answers", "4", "--max-tokens", "8"],
    ):
        ran = cli(*command)
        assert ran.exit_code in (0, 1), ran.output  # 1: two prompts do not confirm a setting
        assert "1 of 3 prompts" in ran.stderr

    async def fails(*_: object) -> list[float]:
        raise RewardError("It does not answer.")

    monkeypatch.setattr("cards.rewards.base.Reward.score", fails)
    ran = cli("calibrate", "--prompts", prompts, *FEW, "--out", "other.json")
    assert (ran.exit_code, "It does not answer." in ran.stderr) == (2, True), ran.output

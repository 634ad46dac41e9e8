"""`--profile` gives defaults for models, length, method and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.mock_cli import Cards

from cards.profile import Profile


@pytest.fixture
def profile(tmp_path: Path) -> str:
    path = tmp_path / "p.json"
    settings = {"target": 0.8, "beta": 0.6, "alpha": 1.0, "temperature": 0.9, "acceptance": "hard", "entropy_threshold": None}
    Profile("models/lm", "models/rm", settings, max_tokens=7).write(path)
    return str(path)


def answer(cli: Cards, *arguments: str) -> dict[str, object]:
    ran = cli("generate", "I like", "--json", *arguments)
    assert ran.exit_code == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def text(found: dict[str, object]) -> object:
    return found["token_ids"]


SAME = ["--target", "0.8", "--beta", "0.6", "--alpha", "1", "--temperature", "0.9", "--acceptance", "hard"]


def test_generate_takes_names_length_and_settings(cli: Cards, profile: str) -> None:
    filled = answer(cli, "--profile", profile)
    assert [name for name, _ in cli.loaded] == ["models/lm", "models/rm"]
    assert text(filled) == text(answer(cli, *SAME, "--max-tokens", "7"))
    assert text(filled) != text(answer(cli, "--max-tokens", "7"))


def test_what_is_given_wins(cli: Cards, profile: str) -> None:
    given = answer(cli, "--max-tokens", "9", "--profile", profile, "--temperature", "0.2")
    assert text(given) == text(answer(cli, *SAME, "--temperature", "0.2", "--max-tokens", "9"))
    other = answer(cli, "--method", "vanilla", "--profile", profile)
    assert other["method"] == "vanilla"
    assert text(other) == text(answer(cli, "--method", "vanilla", "--max-tokens", "7"))


def test_other_models_are_refused(cli: Cards, profile: str) -> None:
    for command in (["generate", "I"], ["compare", "I"]):
        ran = cli(*command, "--profile", profile, "--reward", "other")
        assert ran.exit_code == 2
        assert "only for the reward 'models/rm', got 'other'" in ran.stderr


def test_compare_and_bench_run_its_method(cli: Cards, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("compare", "I like", "--json", "--profile", profile)
    assert ran.exit_code == 0, ran.stderr
    answers = json.loads(ran.stdout)["answers"]
    assert [found["method"].partition(":")[0] for found in answers] == ["vanilla", "best-of-n", "cards"]
    assert answers[2]["settings"]["target"] == 0.8
    ran = cli("bench", "--limit", "2", "--profile", profile, "-m", "vanilla", "--gold", "none", "--out", "b.jsonl")
    assert ran.exit_code == 0, ran.stderr
    rows = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()[1:]]
    assert {row["method"]: row["settings"]["target"] for row in rows if row["method"] == "cards"} == {"cards": 0.8}
    assert {len(row["token_ids"]) for row in rows} <= set(range(8))


def test_a_broken_file_is_one_line(cli: Cards, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    ran = cli("generate", "I", "--profile", str(tmp_path / "p.json"))
    assert ran.exit_code == 2
    assert "is not valid JSON" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_published_settings_come_with_the_package(cli: Cards) -> None:
    published = ["--alpha", "0.5", "--beta", "0.7", "--acceptance", "soft", "--entropy-threshold", "3", "--top-k", "40"]
    models = ["--model", "models/lm", "--reward", "models/rm", "--target", "0.8"]
    found = answer(cli, "--profile", "published", *models)
    assert text(found) == text(answer(cli, *published, "--max-tokens", "128", *models))
    assert [name for name, _ in cli.loaded[:2]] == ["models/lm", "models/rm"]

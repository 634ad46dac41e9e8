"""A package outside the repository adds a method, a reward and a back end, and every front end knows them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

MODELS = ["--model", "letters:abe", "--reward", "vowels:ae"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(Path(__file__).parent / "package", folder / "source")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(folder / "site"), str(source)], check=True, capture_output=True)
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"}


def cards(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cards", *arguments], env=environment, capture_output=True, text=True)


def test_methods_lists_it_and_names_the_plugins_that_are_skipped(environment: dict[str, str]) -> None:
    ran = cards(environment, "methods")
    assert ran.returncode == 0, ran.stderr
    assert "longest-of-n" in ran.stdout
    assert "--bonus" in cards(environment, "methods", "longest-of-n").stdout
    assert "'not-there' of cards.methods was skipped: No module named 'cards_example.nothing'" in ran.stderr
    assert "'best-of-n' of cards.methods was skipped: the name 'best-of-n' is already in use" in ran.stderr


def test_the_command_line_runs_it(environment: dict[str, str]) -> None:
    options = ["--method", "longest-of-n", "--n", "3", "--bonus", "2", "--json", "--max-tokens", "12"]
    ran = cards(environment, "generate", "ab", *MODELS, *options)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["method"] == "longest-of-n"
    assert result["usage"]["rm_calls"] == 3
    assert set(result["text"]) <= set("abe ")
    wrong = cards(environment, "generate", "ab", *MODELS, "--method", "longest-of-n", "--bonus", "101")
    assert wrong.returncode == 2
    assert "bonus must be between 0 and 100, got 101.0." in wrong.stderr


def test_a_reward_that_the_back_end_does_not_have_is_refused_by_the_back_end(environment: dict[str, str]) -> None:
    ran = cards(environment, "generate", "ab", "--model", "letters:abe", "--reward", "letters:abe")
    assert ran.returncode == 2
    assert "letters only write" in ran.stderr


def test_the_bench_compares_it(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("ab\nba\n")
    out = tmp_path / "results.jsonl"
    methods = ["-m", "vanilla", "-m", "longest-of-n:n=2,4"]
    ran = cards(
        environment,
        "bench",
        *MODELS,
        *methods,
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--max-tokens",
        "8",
        "--out",
        str(out),
    )
    assert ran.returncode == 0, ran.stderr
    assert out.read_text().count('"longest-of-n:n=') >= 4


def test_the_server_has_it_also_as_its_own_method(environment: dict[str, str]) -> None:
    for method in ("longest-of-n", "vanilla"):
        command = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground", *MODELS, "--method", method]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr if line.startswith("{"))
            port = next(line["port"] for line in lines if line["message"] == "listening")
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as client:
                served = client.get("/models").json()["data"][0]
                body = {"model": served["id"], "prompt": "ab", "max_tokens": 8}
                body |= {} if method == "longest-of-n" else {"cards": {"method": "longest-of-n", "settings": {"n": 2}}}
                response = client.post("/completions", json=body)
                assert response.status_code == 200, response.text
                assert response.json()["cards"]["method"] == "longest-of-n"
                refused = client.post("/completions", json=body | {"cards": {"method": "longest-of-n", "settings": {"n": 65}}})
                assert refused.status_code == 400
        finally:
            process.kill()
            process.communicate()


def test_the_playground_offers_it_with_its_settings(environment: dict[str, str]) -> None:
    program = (
        "from cards.registry import load_engine, load_reward, make_method\n"
        "from cards.serve.methods import OfferedMethods\n"
        "from cards.serve.playground.offer import describe, visible_settings\n"
        "engine, reward = load_engine('letters:abe'), load_reward('vowels:ae')\n"
        "print('longest-of-n' in OfferedMethods(engine, reward, make_method('vanilla'), 1024).listed)\n"
        "[bonus] = [s for s in visible_settings(make_method('longest-of-n')) if s.name == 'bonus']\n"
        "print(describe(bonus)['kinds'], describe(bonus)['range'][1])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert re.fullmatch(r"True\n\['number'\] 100(\.0)?\n", ran.stdout), ran.stdout + ran.stderr

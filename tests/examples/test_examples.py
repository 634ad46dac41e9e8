"""The examples run as they stand, on the embedded models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.model_server import LM, running

from cards.backends.local.engine import TransformersEngine

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, typed: str = "") -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    ran = subprocess.run(command, input=typed, capture_output=True, text=True, check=False, timeout=240)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_chat_answers_each_turn() -> None:
    said = run("aligned_chat.py", typed="Do you like music?\nWhich band?\n")
    assert said.count("[reward ") == 2


def test_methods_are_compared_on_a_file_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Do you like music?\n\nTell me about your dog.\n")
    table = run("compare_on_your_data.py", str(tmp_path / "prompts.txt"), "--max-tokens", "24").splitlines()
    assert [line.split()[0] for line in table] == ["method", "vanilla", "best-of-n", "cards"]
    drawn = {line.split()[0]: float(line.split()[4]) for line in table[1:]}
    assert drawn["best-of-n"] > 2 * drawn["vanilla"] > 0


def test_a_server_that_knows_nothing_of_it_is_made_safe() -> None:
    with running(LM(TransformersEngine.load("tiny")).app()) as address:
        given = ["safe_vllm.py", address + "/v1", "Why are you so stupid?", "--tokenizer", "tiny"]
        told = run(*given, "--target", "0.5", "--max-tokens", "40")
        assert len(told.strip()) > 0
        assert "stupid" not in told.lower()
        command = [sys.executable, str(EXAMPLES / given[0]), *given[1:], "--target", "1000", "--max-tokens", "12"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "No safe response was found" in refused.stderr

"""The examples run as they stand, on the embedded models."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest
from helpers.model_server import LM, running

import cards
from cards.backends.local.engine import TransformersEngine

EXAMPLES = Path(__file__).parents[2] / "examples"
LATER = [cards.Message(role="user", content="What did you do at the weekend?")]


def run(name: str, *arguments: str, typed: str = "", ignored: str = "error") -> str:
    command = [sys.executable, "-W", "error", "-W", ignored, str(EXAMPLES / name), *arguments]
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


@pytest.mark.slow
def test_a_reward_model_learns_preferences_and_steers(tmp_path: Path) -> None:
    rng = random.Random(0)
    asked = ("Do you like music?", "Tell me about your dog.", "What did you do today?", "Which film do you like?")
    said = ("Yes, I love it a lot.", "I think it is great.", "It was really good.", "I am happy with it.")
    bad = ("No, that is bad.", "I hate all of it.", "It was terrible.", "I do not like you.")
    rows = [
        {"prompt": [{"role": "user", "content": rng.choice(asked)}], "chosen": rng.choice(said), "rejected": rng.choice(bad)}
        for _ in range(60)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "reward")
    given = ["--pairs", str(pairs), "--out", out, "--learning-rate", "1e-3", "--epochs", "4"]
    printed = run("train_reward.py", *given, ignored="ignore::FutureWarning")  # of TRL
    accuracy = next(line for line in printed.splitlines() if line.strip().startswith("100%"))
    assert float(accuracy.split()[1]) == 1.0, printed
    assert "expected calibration error" in printed
    loaded = cards.Decoder("tiny", out, "best-of-n")
    assert loaded("Do you like music?", max_tokens=16, seed=0).reward is not None


@pytest.mark.slow
def test_a_value_head_predicts_the_final_reward_better_and_steers(tmp_path: Path) -> None:
    out = str(tmp_path / "value")
    printed = run("value_head.py", "--out", out, "--samples", "4", "--max-tokens", "32", "--test", "0.2")
    assert [line.split()[0] for line in printed.splitlines()[1:3]] == ["old", "new"]
    old, new = cards.load_reward("tiny"), cards.load_reward(out)
    engine = TransformersEngine.load("tiny")
    results = cards.Decoder(engine, None, "vanilla").batch([LATER] * 40, max_tokens=32, seed=9)
    prompt = engine.encode(LATER)

    async def squares(reward: cards.Reward) -> float:
        kept = [r.token_ids[: len(r.token_ids) // 2] for r in results]
        halves = [cards.Response(str(engine.tokenizer.decode(list(ids))), ids) for ids in kept]
        wholes = [cards.Response(r.text, r.token_ids, r.finish_reason) for r in results]
        predicted, final = await reward.score(prompt, halves), await old.score(prompt, wholes)
        return mean((p - f) ** 2 for p, f in zip(predicted, final, strict=True))

    assert asyncio.run(squares(new)) < asyncio.run(squares(old))
    assert cards.Decoder(engine, new, cards.CARDS(gain=0))(LATER, max_tokens=16).reward is not None

"""Rewards by name: sums with and without spaces, and functions in files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cards.errors import SettingError, UnknownNameError
from cards.events import Prompt, Response
from cards.rewards.loader import load_reward, summands


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("tiny+length:3-5", ["tiny", "length:3-5"]),
        ("tiny + length:3-5", ["tiny", "length:3-5"]),
        ("length:3-+json+tiny", ["length:3-", "json", "tiny"]),
        ("regex:a+b", ["regex:a+b"]),
        ("json+regex:a+b + keywords:c++", ["json", "regex:a+b", "keywords:c++"]),
        ("http://host/a+b", ["http://host/a+b"]),
        ("tiny", ["tiny"]),
    ],
)
def test_a_plus_joins_rewards_but_not_within_patterns(name: str, parts: list[str]) -> None:
    assert summands(name) == parts


def test_a_plus_in_the_path_of_a_file_joins_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a+b.py"
    file.write_text("def score(prompt, response):\n    return 1.0\n")
    assert summands(f"{file}:score") == [f"{file}:score"]


def test_a_function_of_a_file_is_a_reward(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from cards.rewards import LengthReward\n\nshort = LengthReward(0, 2)\n\n"
        "def longer(prompt, response):\n    return len(response) - len(prompt)\n\n"
        "def _hidden(prompt, response):\n    return 0\n"
    )
    prompt, responses = Prompt("ab"), [Response("abcde"), Response("a b c d")]
    assert asyncio.run(load_reward(f"{file}:longer", device="cpu").score(prompt, responses)) == [3.0, 5.0]
    assert asyncio.run(load_reward(f"{file}:short").score(prompt, responses)) == [1.0, 0.0]
    assert asyncio.run(load_reward(f"{file}:longer+length:-1").score(prompt, responses)) == [4.0, 5.0]
    with pytest.raises(UnknownNameError, match="Did you mean 'longer'"):
        load_reward(f"{file}:long")
    with pytest.raises(UnknownNameError, match="Known: longer, short"):
        load_reward(str(file))
    with pytest.raises(SettingError, match="must exist"):
        load_reward("missing.py:f")
    file.write_text("import nothing_of_this_name")
    with pytest.raises(SettingError, match=r"cannot be imported\. ModuleNotFoundError"):
        load_reward(f"{file}:longer")

"""Rewards by name: sums with and without spaces, and functions in files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.random_models import word_tokenizer

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


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tiny?outptu=0", "Unknown option of reward 'tiny': 'outptu'. Did you mean 'output'"),
        ("tiny?output=helpful", "Unknown reward output 'helpful'.*Known: LABEL_0"),
        ("tiny?form=paired", "form must be 'pair', 'plain'"),
        ("tiny?target=high", "target must be NUMBER, got 'high'"),
        ("tiny?output", "NAME.option=value"),
        ("tiny?target=1&target=2", "Give it once"),
        ("length:1-2?least=3", "Known: graded, unit"),
        ("json?graded=yes", "takes no options"),
    ],
)
def test_a_wrong_option_in_a_name_is_an_error_that_lists_the_right_ones(name: str, error: str) -> None:
    with pytest.raises((SettingError, UnknownNameError), match=error):
        load_reward(name)


def test_options_in_a_name_are_those_of_python(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "harmless", 1: "helpful, honest", 2: "brief"}
    config = hf.LlamaConfig(vocab_size=80, id2label=labels, pad_token_id=0, **sizes)
    hf.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    word_tokenizer().save_pretrained(tmp_path / "rm")
    folder, prompt, responses = (
        str(tmp_path / "rm"),
        Prompt("w2 w3"),
        [Response(text, (), "stop") for text in (" w4", " w5 w6")],
    )

    def scores(name: str, **options: Any) -> list[float]:
        return asyncio.run(load_reward(name, **options).score(prompt, responses))

    every = [scores(folder, output=i) for i in range(3)]
    assert scores(f"{folder}?output=helpful, honest") == every[1]
    assert scores(f"{folder}?output=brief&form=plain") == every[2]
    assert scores(f"{folder}?output=2&target=3") == every[2]
    assert scores(f"{folder}?output=1,0,2") == pytest.approx([a + 2 * c for a, c in zip(every[0], every[2], strict=True)])
    assert scores(f"process:{folder}?output=brief&join=min&delimiter=,") == scores(f"{folder}?output=brief")
    assert scores(f"{folder}?output=brief+length:1-1?graded=yes") == pytest.approx([every[2][0] + 1, every[2][1] + 0.5])
    assert load_reward(f"{folder}?output=0&target=2.5").target == 2.5
    with pytest.raises(UnknownNameError, match="Known: brief, harmless, helpful, honest"):
        load_reward(f"{folder}?output=kind")
    with pytest.raises(SettingError, match="given once"):
        load_reward(f"{folder}?output=0", output=1)


def test_free_text_and_addresses_keep_their_question_marks(tmp_path: Path) -> None:
    assert asyncio.run(load_reward("regex:a?b=c").score(Prompt("x"), [Response("ab=c"), Response("b=d")])) == [1.0, 0.0]
    file = tmp_path / "what?.py"
    file.write_text("def score(prompt, response):\n    return 1.0\n")
    assert load_reward(f"{file}:score").name == f"{file}:score"
    mine = tmp_path / "mine.py"
    mine.write_text("def score(prompt, response):\n    return 1.0\n")
    reward = load_reward(f"{mine}:score?target=2&scale=probability")
    assert (reward.target, reward.scale) == (2.0, "probability")

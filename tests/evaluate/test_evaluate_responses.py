"""Responses from a bench and from elsewhere, and which of them are a pair."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.judge_server import benched

from cards.errors import CardsError, SettingError
from cards.study.evaluate.responses import fingerprint, messages_of, pairs, read, unpaired


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_results_of_a_bench_keep_what_they_know(tmp_path: Path) -> None:
    answers = read([benched(tmp_path / "b.jsonl", seeds=2)])
    assert {name: len(own) for name, own in answers.systems.items()} == {"vanilla": 6, "best-of-n:n=3": 6}
    assert answers.steering == {"steering"}
    assert (answers.graders("gold"), answers.graders("harm")) == ({"gold"}, {None})
    one = answers.systems["best-of-n:n=3"][1]
    assert (one.id, one.group, one.seed, one.messages) == ("q1", "harmful", 8, ({"role": "user", "content": "ba c"},))
    assert one.grades == {"reward": ("steering", one.text.count("b")), "gold": ("gold", -one.text.count("c"))}
    assert one.finish_reason == "length"
    assert one.usage is not None
    assert one.usage.rm_calls == 3


def test_files_of_other_systems_are_read_in_the_forms_of_the_field(tmp_path: Path) -> None:
    alpaca = [{"instruction": "Hi?", "output": "Ho.", "generator": "gpt", "dataset": "koala"}]
    (tmp_path / "a.json").write_text(json.dumps(alpaca), encoding="utf-8")
    batch = {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "text": " Ho. ", "seed": 3, "finish_reason": "stop", "row": 0}
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(batch).encode()))
    lines(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "Hi?"}], "response": "Ho.", "system": "own", "id": 9})
    answers = read([str(tmp_path / "a.json"), str(tmp_path / "b.jsonl.gz"), f"renamed={tmp_path / 'c.jsonl'}"])
    assert list(answers.systems) == ["gpt", "b", "renamed"]
    assert {(a.prompt, a.text) for a in answers.all} == {(fingerprint(messages_of("Hi?")), "Ho.")}
    assert [(a.id, a.seed, a.finish_reason) for a in answers.all] == [("0", None, None), ("0", 3, "stop"), ("9", None, None)]


def test_groups_come_from_the_row_or_else_from_the_data(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"prompt": "a", "answer": "x"}, {"prompt": "b", "answer": "x", "group": "safe"})
    groups = {fingerprint(messages_of(prompt)): "unsafe" for prompt in "ab"}
    assert [a.group for a in read([path], groups).all] == ["unsafe", "safe"]
    assert [a.group for a in read([path]).all] == ["", "safe"]


def test_pairs_have_one_prompt_and_one_seed(tmp_path: Path) -> None:
    own = lines(tmp_path / "own.jsonl", *({"prompt": p, "answer": f"{p}{s}", "seed": s} for s in (1, 2, 3) for p in "abc"))
    base = lines(tmp_path / "base.jsonl", *({"prompt": p, "answer": f"{p}{s}", "seed": s} for p in "dcb" for s in (3, 2)))
    systems = read([own, base]).systems
    found = pairs(systems["own"], systems["base"])
    assert [(a.text, b.text) for a, b in found] == [(t, t) for t in ("b2", "c2", "b3", "c3")]
    assert unpaired(systems["own"], systems["base"]) == ["a", "d"]


def test_answers_without_seeds_are_paired_by_prompt(tmp_path: Path) -> None:
    own = lines(tmp_path / "own.jsonl", {"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"})
    base = lines(tmp_path / "base.jsonl", *({"prompt": p, "answer": f"{p}{s}", "seed": s} for p in "ba" for s in (7, 5)))
    systems = read([own, base]).systems
    assert [(a.text, b.text) for a, b in pairs(systems["own"], systems["base"])] == [("1", "a5"), ("2", "b5")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a", "answer": "x"}\n{"answer": "y"}\n', "Row number 1 of .* has no prompt: .*prompt, instruction"),
        ('{"prompt": "a"}\n', "Row number 0 of .* has no response: .*answer, text, response, output"),
        ('{"prompt": "a", "answer": 3}\n', "has no response"),
        ('{"prompt": "a", "answer": "x", "seed": "two"}\n', "seed must be a whole number, got 'two'"),
        (
            '{"prompt": "a", "answer": "x"}\n{"prompt": " a", "answer": "y", "id": 5}\n',
            "second response of 'f' to the prompt '5'",
        ),
        ('"a"\n', "must be an object with a prompt and a response, got str"),
        ('{"messages": [{"role": "user"}], "answer": "x"}\n', "Row number 0 of .*'role' and 'content'"),
        ("\n", "no rows"),
        ("{prompt", "not JSONL"),
        ('{"cards-bench": {"made by": "cards evaluate"}}\n', "has no response"),
    ],
)
def test_what_is_wrong_with_answers_is_said(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "f.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(CardsError, match=said):
        read([str(tmp_path / "f.jsonl")])


def test_several_systems_cannot_have_one_name(tmp_path: Path) -> None:
    path = benched(tmp_path / "b.jsonl")
    with pytest.raises(SettingError, match="several systems, so it cannot be named 'x'"):
        read([f"x={path}"])
    with pytest.raises(SettingError, match="second response of 'vanilla'"):
        read([path, path])
    with pytest.raises(CardsError, match=r"none\.jsonl' cannot be read"):
        read([str(tmp_path / "none.jsonl")])

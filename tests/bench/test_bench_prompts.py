"""Where prompts come from, and the form in which they reach a model."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from cards.errors import MissingExtraError, PromptError
from cards.events import Message
from cards.prompts import format_prompt
from cards.study.datasets import DATASETS
from cards.study.prompts import PromptRecord, content, read, sample

DIALOGUE = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: A joke?\n\nAssistant: No."
TURNS: tuple[Message, ...] = (
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "A joke?"},
)
ROWS: dict[str, list[tuple[dict[str, Any], Any, str]]] = {  # rows as the data set has them, what they ask, and their group
    "hh-rlhf": [({"chosen": DIALOGUE, "rejected": DIALOGUE + " Ha."}, TURNS, "")],
    "ultrafeedback": [
        (
            {"prompt": "Why?", "prompt_id": "f", "chosen": [], "rejected": [], "messages": [*TURNS], "score_chosen": 8.0},
            "Why?",
            "",
        )
    ],
    "helpsteer": [
        (
            {"prompt": "How?", "response": "So.", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2}
            | {"verbosity": 1},
            "How?",
            "",
        )
    ],
    "alpaca-eval": [({"dataset": "koala", "instruction": "Name two.", "output": "One.", "generator": "g"}, "Name two.", "")],
    "advbench": [
        ({"goal": "Do that.", "target": "Sure"}, "Do that.", "harmful"),
        ({"prompt": "Do it.", "target": "Sure"}, "Do it.", "harmful"),  # as in copies
    ],
    "saferlhf": [
        (
            {"prompt": "May I?", "response_0": "Yes.", "response_1": "No.", "is_response_0_safe": True}
            | {"is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1},
            "May I?",
            "harmful",
        )
    ],
    "beavertails": [
        (
            {"prompt": "Shall I?", "response": "Yes.", "category": {"privacy_violation": False}, "is_safe": True},
            "Shall I?",
            "harmful",
        )
    ],
    "xstest": [
        (
            {"id": "1", "prompt": "How do I kill a process?", "type": "homonyms", "label": "safe", "focus": "kill", "note": ""},
            "How do I kill a process?",
            "safe",
        ),
        (
            {"id": "2", "prompt": "How do I kill a man?", "type": "contrast_homonyms", "label": "unsafe", "focus": "kill"}
            | {"note": ""},
            "How do I kill a man?",
            "unsafe",
        ),
    ],
}


def test_our_own_prompts_are_64_different_ones() -> None:
    questions = read("tiny")
    assert len(questions) == len({q.prompt for q in questions}) == 64
    assert questions[0] == PromptRecord(0, "film-1", "Which film made you laugh the most this year?")


def test_files_of_all_kinds_ask_the_same(tmp_path: Path) -> None:
    texts = ["One, two?", 'Say "hi".', "Ä?"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n\n" for t in texts), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": t} for t in texts]), encoding="utf-8")
    (tmp_path / "c.csv").write_text('goal,target\n"One, two?",x\n"Say ""hi"".",y\nÄ?,z\n', encoding="utf-8")
    (tmp_path / "d.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    for name in ("a.jsonl", "b.json", "c.csv", "d.txt"):
        assert [q.prompt for q in read(str(tmp_path / name))] == texts, name
        assert [q.id for q in read(str(tmp_path / name))] == ["0", "1", "2"]


@pytest.mark.parametrize("name", DATASETS)
def test_rows_of_the_hub_are_read_up_to_the_last_turn_of_the_user(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, str]]] = []

    def load_dataset(source: str, **options: str) -> list[dict[str, Any]]:
        calls.append((source, options))
        return [row | {"id": "same"} for row, _, _ in ROWS[name]] * 2

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    expected = [PromptRecord(i, str(i), asked, group) for i, (_, asked, group) in enumerate(ROWS[name])]
    assert read(name) == expected  # each prompt once, though preference data have theirs twice
    assert calls == [(DATASETS[name].source, DATASETS[name].options)]


@pytest.mark.parametrize("name", DATASETS)
def test_the_same_rows_in_a_file_give_the_same_prompts(name: str, tmp_path: Path) -> None:
    rows = [row for row, _, _ in ROWS[name]]
    lines = "".join(json.dumps(row) + "\n" for row in rows * 2)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "d.csv").write_text(table(rows), encoding="utf-8")
    expected = [PromptRecord(i, str(i), asked, group) for i, (_, asked, group) in enumerate(ROWS[name])]
    (tmp_path / "e.json").write_text(lines, encoding="utf-8")  # JSON Lines under another name
    columns = {name: None for row in rows for name in row}
    parquet.write_table(pyarrow.Table.from_pylist([columns | row for row in rows]), tmp_path / "f.parquet")
    for file in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.json", "f.parquet"):
        assert read(f"{name}={tmp_path / file}") == expected, file


def table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("xstest", {"prompt": "a", "type": "homonyms"}, "Row number 1 of .*column label must be safe or unsafe, got None"),
        ("xstest", {"prompt": "a", "label": "maybe"}, "label must be safe or unsafe, got 'maybe'"),
        ("xstest", {"label": "safe"}, "needs the column prompt, and label, got label"),
        ("advbench", {"target": "Sure"}, "needs the column goal or prompt, got target"),
        ("hh-rlhf", {"rejected": "x"}, "needs the column chosen or prompt"),
        ("beavertails", "text", "must be an object with the column prompt, got str"),
    ],
)
def test_a_row_without_the_columns_of_its_data_set_is_told(name: str, row: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[name][0][0]) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(PromptError, match=said):
        read(f"{name}={tmp_path / 'a.jsonl'}")


def test_groups_of_our_own_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "group": "unsafe"}\n{"prompt": "b"}\n', encoding="utf-8")
    assert [q.group for q in read(str(tmp_path / "a.jsonl"))] == ["unsafe", ""]


def test_a_sample_is_of_the_whole_list_and_grows_without_changing() -> None:
    questions = [PromptRecord(i, str(i), f"{i}") for i in range(1000)]
    assert sample(questions, None, 0) == sample(questions, 5000, 3) == questions
    few, more = sample(questions, 100, 0), sample(questions, 300, 0)
    assert (len(few), len(more)) == (100, 300)
    assert set(few) < set(more)
    assert [q.number for q in more] == sorted(q.number for q in more)
    assert all(15 < sum(start <= q.number < start + 100 for q in more) < 45 for start in range(0, 1000, 100))
    assert sample(questions, 100, 0) == few != sample(questions, 100, 1)


def test_dialogues_become_messages_and_back() -> None:
    for row in (DIALOGUE, {"prompt": DIALOGUE.removesuffix(" No.")}, {"messages": list(TURNS)}):
        assert content(row) == TURNS
    assert format_prompt(TURNS, "dialogue", chats=True) == DIALOGUE.removesuffix(" No.")
    assert format_prompt("Hi.", "dialogue", chats=True) == "\n\nHuman: Hi.\n\nAssistant:"


def test_forms() -> None:
    said = [{"role": "user", "content": "Hi."}]
    assert format_prompt("Hi.", "auto", chats=True) == format_prompt("Hi.", "chat", chats=False) == said
    assert format_prompt("Hi. ", "auto", chats=False) == format_prompt("Hi. ", "raw", chats=True) == "Hi. "
    assert format_prompt(TURNS, "auto", chats=True) == list(TURNS)
    assert format_prompt(TURNS, "auto", chats=False) == format_prompt(TURNS, "dialogue", chats=False)
    with pytest.raises(PromptError, match="raw"):
        format_prompt(TURNS, "raw", chats=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', "Prompt number 1 of .*fields prompt, instruction.* got text"),
        ('{"prompt": 3}\n', "got int"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}\n', "empty list"),
        ('"  "\n', "empty"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}\n', "same id"),
        ("{prompt\n", "not JSONL"),
        ("", "no prompts"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PromptError, match=said):
        read(str(path))


def test_a_file_that_is_not_there_is_told_with_what_there_is() -> None:
    with pytest.raises(PromptError, match=r"'no.jsonl' cannot be read \(No such file.*hh-rlhf"):
        read("no.jsonl")


def test_without_the_extra_or_the_hub_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cards-decoding\[bench\]'.*hh-rlhf=FILE"):
        read("hh-rlhf")

    def load_dataset(source: str, **options: str) -> None:
        raise ConnectionError(f"Couldn't reach '{source}' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(PromptError, match=r"Anthropic/hh-rlhf.*Couldn't reach.*hh-rlhf=FILE") as error:
        read("hh-rlhf")
    assert "more" not in str(error.value)

"""Each data set in the files and columns of its repository, read by the library that reads it from the Hub."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cards.study.datasets import DATASETS, load
from cards.study.prompts import read

Rows = list[dict[str, Any]]
TALK = "\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: {}\n\nAssistant: "
SPOKEN = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SCORES = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}


def card(**files: str) -> str:
    """The head of a data set's card, which says what its splits are made of."""
    splits = "".join(f"  - split: {split.strip('_')}\n    path: {path}\n" for split, path in files.items())
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n"


def judged(prompt: str) -> dict[str, Any]:
    sides = [("source", "Alpaca"), ("harm_category", {"Violence": True}), ("severity_level", 1), ("sha256", "0")]
    both = {f"response_{k}_{name}": value for k in (0, 1) for name, value in sides}
    answers = {"response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False}
    return {"prompt": prompt, "prompt_source": "-", **answers, **both, "better_response_id": 0, "safer_response_id": 0}


def pair(text: str) -> Rows:
    return [{"chosen": TALK.format(text) + "Yes.", "rejected": TALK.format(text) + "No."}]


REPOSITORIES: dict[str, tuple[dict[str, str | Rows], list[str]]] = {  # files, and the last messages of the prompts read
    "hh-rlhf": (
        {
            "harmless-base/test.jsonl.gz": pair("One?"),
            "harmless-base/train.jsonl.gz": pair("Two?"),
            "helpful-base/test.jsonl.gz": pair("Three?"),
            "helpful-base/train.jsonl.gz": pair("Four?"),
        },
        ["One?", "Three?"],
    ),
    "ultrafeedback": (
        {
            "README.md": card(train_prefs="data/train_prefs-*", test_prefs="data/test_prefs-*", test_sft="data/test_sft-*"),
            **{
                f"data/{split}-00000-of-00001.parquet": [
                    {"prompt": split, "prompt_id": "f", "chosen": SPOKEN, "rejected": SPOKEN, "messages": SPOKEN}
                    | {"score_chosen": 8.0, "score_rejected": 5.0}
                ]
                for split in ("train_prefs", "test_prefs", "test_sft")
            },
        },
        ["test_prefs"],
    ),
    "helpsteer": (
        {f"{split}.jsonl.gz": [{"prompt": split, "response": "So.", **SCORES}] for split in ("train", "validation")},
        ["validation"],
    ),
    "alpaca-eval": (
        {"alpaca_eval.json": [{"instruction": "Name two.", "output": "One.", "generator": "g", "dataset": "koala"}]},
        ["Name two."],
    ),
    "advbench": ({"harmful_behaviors.csv": [{"goal": "Do it, now.", "target": "Sure"}]}, ["Do it, now."]),
    "saferlhf": (
        {
            "README.md": card(train="data/Alpaca-7B/train.jsonl", test="data/Alpaca-7B/test.jsonl"),
            **{f"data/Alpaca-7B/{split}.jsonl": [judged(split)] for split in ("train", "test")},
        },
        ["test"],
    ),
    "beavertails": (
        {
            "README.md": card(_30k_train="round0/30k/train.jsonl.gz", _30k_test="round0/30k/test.jsonl.gz"),
            **{
                f"round0/30k/{split}.jsonl.gz": [
                    {"prompt": split, "response": "So.", "category": {"privacy_violation": False}, "is_safe": True}
                ]
                for split in ("train", "test")
            },
        },
        ["test"],
    ),
    "xstest": (
        {
            "xstest_prompts.csv": [
                {"id": "1", "prompt": "How do I kill time?", "type": "homonyms", "label": "safe", "focus": "kill", "note": ""},
                {
                    "id": "2",
                    "prompt": "How do I hurt?",
                    "type": "contrast_homonyms",
                    "label": "unsafe",
                    "focus": "",
                    "note": "",
                },
            ]
        },
        ["How do I kill time?", "How do I hurt?"],
    ),
}


def write(path: Path, content: str | Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(content[0]))
            writer.writeheader()
            writer.writerows(content)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in content)
        text = json.dumps(content) if path.suffix == ".json" else lines
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("name", DATASETS)
def test_the_repository_of_a_data_set_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    files, expected = REPOSITORIES[name]
    data = DATASETS[name]
    address = data.options.get("data_files")  # one file, else the repository: a folder here is taken before the Hub
    folder = tmp_path / "files" if address else tmp_path / data.source
    for path, content in files.items():
        write(folder / path, content)
    if address:
        assert address.rpartition("/")[2] in files
        options = data.options | {"data_files": str(folder / address.rpartition("/")[2])}
        monkeypatch.setitem(DATASETS, name, replace(data, options=options))
    assert len(load(name)) == len(expected)
    questions = read(name)
    assert [q.prompt if isinstance(q.prompt, str) else q.prompt[-1]["content"] for q in questions] == expected
    assert [q.group for q in questions] == (["safe", "unsafe"] if name == "xstest" else [data.group] * len(expected))

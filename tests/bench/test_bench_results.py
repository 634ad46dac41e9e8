"""The results file survives interruptions and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cards.errors import SettingError
from cards.study.bench.run import key
from cards.study.journal import Journal

HEADER = {"model": "tiny", "reward": "tiny", "versions": {"torch": "2"}}


def row(seed: int, **more: Any) -> dict[str, Any]:
    return {"id": "0", "prompt": "Well?", "method": "cards", "settings": {"beta": 0.5}, "seed": seed, "text": "ä", **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    results = Journal.open(tmp_path / "results.jsonl", HEADER)
    for seed in range(3):
        results.append(row(seed))
    assert results.path is not None
    return results.path


def test_what_is_appended_is_there_again(path: Path) -> None:
    assert Journal.open(path, HEADER).rows == [row(0), row(1), row(2)]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_last_line_cut_short_is_dropped_and_the_file_is_whole_again(path: Path, cut: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    left = 3 if cut == 1 else 2  # only the line end is missing, or a part of the row
    results = Journal.open(path, HEADER)
    assert [r["seed"] for r in results.rows] == list(range(left))
    results.append(row(9))
    assert [json.loads(line).get("seed") for line in path.read_text(encoding="utf-8").splitlines()] == [None, *range(left), 9]


def test_a_file_cut_in_the_middle_of_a_character_is_repaired(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex("ä".encode()) + 1])
    assert [r["seed"] for r in Journal.open(path, HEADER).rows] == [0, 1]


def test_a_damaged_line_in_the_middle_is_refused_by_number(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-5], *lines[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"Line 2 of .* is damaged"):
        Journal.open(path, HEADER)


def test_results_of_other_models_are_refused_and_left_alone(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(SettingError, match=r"made with model 'tiny', now 'big'; versions .* Choose another output"):
        Journal.open(path, HEADER | {"model": "big", "versions": {"torch": "3"}})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b'{"prompt": "a"}\n', b"\xff\xfe\x00", b"[1]\n", b"no JSON\n\n"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "prompts.jsonl"
    other.write_bytes(content)
    with pytest.raises(SettingError, match="holds no results"):
        Journal.open(other, HEADER)
    assert other.read_bytes() == content


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be written"):
        Journal.open(tmp_path / "no" / "folder.jsonl", HEADER)
    with pytest.raises(SettingError, match="cannot be read"):
        Journal.load(tmp_path / "nothing.jsonl")


def test_an_answer_is_known_by_prompt_method_settings_and_seed() -> None:
    same = key(row(0, id="other name", label="other label", text="other"))
    assert same == key(row(0))
    for change in ({"prompt": "What?"}, {"method": "stars"}, {"settings": {"beta": 0.6}}):
        assert key(row(0) | change) != key(row(0))
    assert key(row(1)) != key(row(0))

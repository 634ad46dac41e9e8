"""Files and objects contain the version of their format. Older versions are read exactly, newer ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cards.batch import job
from cards.errors import CardsError, SettingError
from cards.integrations.preferences_journal import opened as preferences
from cards.profile import Profile
from cards.study import tables
from cards.study.evaluate.responses import read
from cards.study.evaluate.run import HEADER
from cards.study.journal import Journal
from cards.study.prompts import PromptRecord
from cards.study.session import opened

BENCH = {"model": "tiny", "reward": "tiny", "gold": "none"}
ROW = {
    **{"id": "0", "prompt": "Well?", "label": "cards", "text": "Yes.", "seed": 0, "finish_reason": "stop"},
    **{"usage": {}, "reward": 1.0},
}


def profile(folder: Path) -> Any:
    path = folder / "profile.json"
    if not path.exists():
        Profile("lm", "rm", {"target": 2.0}).write(path)
    return Profile.read(path)


def bench(folder: Path) -> Any:
    with opened(folder / "bench.jsonl", BENCH, "test") as session:
        if not session.rows:
            session.journal.append(ROW)
        return session.rows


def compared(folder: Path) -> Any:
    """The results of a bench as `cards evaluate` reads them."""
    bench(folder) if not (folder / "bench.jsonl").exists() else None
    return read([str(folder / "bench.jsonl")]).all


def judgements(folder: Path) -> Any:
    with opened(folder / "judgements.jsonl", HEADER, "test") as session:
        if not session.rows:
            session.journal.append({"key": "k", "verdict": 1})
        return session.rows


def pairs(folder: Path) -> Any:
    with preferences(folder / "pairs.jsonl", {"model": "tiny"}, [PromptRecord(0, "0", "Well?")], 0) as collection:
        if collection.missing:
            collection.session.journal.append({"prompt": "Well?", "seed": 0, "pairs": []})
        return collection.session.rows


def batch(folder: Path) -> Any:
    (folder / "in.jsonl").write_text('{"prompt": "a"}\n')
    with job.opened(folder / "in.jsonl", folder / "out.jsonl", {"model": "tiny"}, "row") as begun:
        (folder / "out.jsonl").write_text('{"row": 0}\n')
        return begun.total


FILES: list[tuple[Callable[[Path], Any], str]] = [
    (profile, "profile.json"),
    (bench, "bench.jsonl"),
    (compared, "bench.jsonl"),
    (judgements, "judgements.jsonl"),
    (pairs, "pairs.jsonl.journal"),
    (batch, "out.jsonl.state.json"),
]


@pytest.mark.parametrize(("use", "name"), FILES)
def test_a_file_says_its_format_and_is_read_or_refused_by_it(tmp_path: Path, use: Callable[[Path], Any], name: str) -> None:
    path = tmp_path / name
    written = use(tmp_path)

    def change(**version: Any) -> None:
        lines = path.read_text(encoding="utf-8").split("\n") if "jsonl" in name and "state" not in name else [path.read_text()]
        first = json.loads(lines[0])
        assert first.pop("format") == 1
        path.write_text("\n".join([json.dumps(first | version), *lines[1:]]), encoding="utf-8")

    assert use(tmp_path) == written
    original = path.read_bytes()
    change()  # as files were written before they had versions
    assert use(tmp_path) == written
    for version in (2, 99, -1, "1", True, None):
        path.write_bytes(original)
        change(format=version)
        changed = path.read_bytes()
        with pytest.raises(SettingError, match=rf"{name}' has format .*reads formats 0 to 1 only. Upgrade cards-decoding, or"):
            use(tmp_path)
        assert path.read_bytes() == changed


def test_an_older_journal_gets_the_new_format_when_it_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"cards-bench": BENCH}) + "\n" + json.dumps(ROW) + "\n")
    assert Journal.open(path, BENCH).rows == [ROW]
    assert json.loads(path.read_text().splitlines()[0]) == {"cards-bench": BENCH, "format": 1}


def test_reports_say_their_format() -> None:
    assert json.loads(tables.to_json({"a": 1})) == {"format": 1, "a": 1}


def test_a_state_file_that_is_no_object_is_damaged(tmp_path: Path) -> None:
    batch(tmp_path)
    (tmp_path / "out.jsonl.state.json").write_text("3")
    with pytest.raises(CardsError, match="is damaged"):
        batch(tmp_path)

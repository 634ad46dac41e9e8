"""Profiles come back as they were written, and what is wrong with a file is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cards import CARDS, CardsError
from cards.profile import PACKAGED, Profile, located

FOUND = Profile("tiny", "tiny", {"target": 1.5, "beta": 0.5, "acceptance": "hard", "temperature": None}, max_tokens=64)


def test_a_profile_comes_back_as_it_was_written(tmp_path: Path) -> None:
    FOUND.write(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json") == FOUND
    assert FOUND.make() == CARDS(target=1.5, beta=0.5, acceptance="hard")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object with model, reward, settings"),
        ('{"model": "tiny", "settings": {}}', "must be a JSON object"),
        ({"beat": 1}, "Unknown entry"),
        ({"max_tokens": "many"}, "max_tokens .* must be of type int, got 'many'"),
        ({"max_tokens": 0}, "at least 1"),
        ({"method": "crads"}, "Did you mean 'cards'"),
        ({"settings": {"targt": 1}}, "Did you mean 'target'"),
        ({"settings": {"beta": -1}}, "beta must be positive"),
        ({"settings": {"beta": "x"}}, "settings in the profile"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str | dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text if isinstance(text, str) else json.dumps({"model": "tiny", "reward": "tiny", "settings": {}} | text))
    with pytest.raises(CardsError, match=says) as caught:
        Profile.read(path)
    assert "p.json" in str(caught.value)


def test_a_missing_file_says_who_writes_one(tmp_path: Path) -> None:
    with pytest.raises(CardsError, match="cards calibrate"):
        Profile.read(tmp_path / "p.json")


def test_a_profile_is_for_its_models_only() -> None:
    FOUND.check_models("tiny", "tiny")
    with pytest.raises(CardsError, match="only for the reward 'tiny', got 'other'"):
        FOUND.check_models("tiny", "other")


def test_the_published_profile_is_the_paper_s_and_for_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = Profile.read(Path("published"))
    profile.check_models("tiny", "anything", "some mixture")
    assert not profile.warnings(64)
    made = profile.make()
    assert isinstance(made, CARDS)
    assert (made.alpha, made.beta, made.acceptance, made.entropy_threshold, made.top_k) == (0.5, 0.7, "soft", 3.0, 40)
    assert (made.min_segment, made.max_segment, made.max_rejections, made.sampling.temperature) == (4, 64, 20, 0.7)
    assert made.target is None  # rewards have no common scale


def test_a_file_of_the_same_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FOUND.write(tmp_path / "published")
    assert Profile.read(Path("published")) == FOUND
    assert located("published", tmp_path) == tmp_path / "published"
    assert located("published", tmp_path / "other") == PACKAGED / "published.json"
    assert located("../published", tmp_path / "other") == tmp_path / "other" / "../published"

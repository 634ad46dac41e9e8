"""The first example is the one that the rule of benchmarks/demo_prompt.py chose, and all places show the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cards
from cards.example import PROMPT, RIVAL

ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "benchmarks" / "results" / "demo_prompt.json").read_text(encoding="utf-8"))
CHOSEN, TRIED = FOUND["chosen"], FOUND["tried"][-1]


def test_the_example_is_the_prompt_that_the_rule_chose() -> None:
    assert (CHOSEN["prompt"], f"best-of-n:n={CHOSEN['n']}") == (PROMPT, RIVAL)
    assert FOUND["method"] == TRIED["method"] == "cards:width=1"  # the demo uses the defaults
    assert CHOSEN["gain"] == TRIED["median_gain"] > 0
    assert CHOSEN["best_of_n_mflops"] >= CHOSEN["mflops"]


def test_all_places_show_it() -> None:
    means = f"{TRIED['reward']:.2f}", f"{TRIED['best_of_n']:.2f}"
    makefile, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "README.md"))
    for line in (f"QUESTION ?= {PROMPT}\n", f"N ?= {CHOSEN['n']}\n"):
        assert line in makefile
    for text in (makefile, readme):
        assert f"CARDS gets a mean reward of {means[0]}, and best-of-n {means[1]}" in " ".join(text.split())
    for text in (PROMPT, CHOSEN["text"], CHOSEN["best_of_n_text"], f"--n {CHOSEN['n']}"):
        assert text in readme
    assert PROMPT in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "text"), [("cards", CHOSEN["text"]), (RIVAL, CHOSEN["best_of_n_text"])])
def test_the_responses_are_those_of_the_embedded_models(method: str, text: str) -> None:
    result = cards.Decoder("tiny", reward="tiny", method=method)([{"role": "user", "content": PROMPT}])
    assert result.text.strip() == text

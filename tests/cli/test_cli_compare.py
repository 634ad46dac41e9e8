"""`cards compare` shows the text and figures of each method, even if others fail."""

from __future__ import annotations

import io
import json

import pytest
from helpers.mock_cli import Cards, plain
from rich.console import Console

import cards
from cards.cli.arms import arms_of
from cards.cli.board import Board, Pane
from cards.events import Accepted, Event

ARGUMENTS = ("Well?", "--max-tokens", "24", "-m", "vanilla", "-m", "best-of-n:n=2,3")


@pytest.fixture
def compare(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> Cards:
    monkeypatch.setenv("COLUMNS", "140")
    return cli


def results(cli: Cards) -> list[cards.Result]:
    methods = (cards.methods.Vanilla(), cards.methods.BestOfN(n=2), cards.methods.BestOfN(n=3))
    return [cards.Decoder(cli.engine, cli.reward, m)([{"role": "user", "content": "Well?"}], max_tokens=24) for m in methods]


def test_texts_and_figures_are_those_of_the_decoder(compare: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = compare("compare", *ARGUMENTS)
    assert ran.exit_code == 0, ran.output
    lines = ran.stdout.splitlines()
    assert all(label in lines[0] for label in (" vanilla ", " best-of-n:n=2 ", " best-of-n:n=3 "))
    monkeypatch.setenv("COLUMNS", "60")  # one below the other
    below = "".join(compare("compare", *ARGUMENTS).stdout.replace("│", "").split())
    for label, result in zip(("vanilla", "best-of-n:n=2", "best-of-n:n=3"), results(compare), strict=True):
        reward = compare.reward.function("", result.text)
        [cells] = [line.split() for line in lines if line.startswith(label)]
        assert cells[1:5] == [f"{reward:.2f}", "-", f"{len(result.token_ids)}/{result.usage.lm_decoded_tokens}", "0"]
        assert "".join(result.text.split()) in below


def test_json_has_every_result_and_its_grades(compare: Cards) -> None:
    ran = compare("compare", *ARGUMENTS, "--json", "--gold", "other")
    printed = json.loads(ran.stdout)
    assert printed["prompt"] == "Well?"
    assert [a["label"] for a in printed["answers"]] == ["vanilla", "best-of-n:n=2", "best-of-n:n=3"]
    for answer, result in zip(printed["answers"], results(compare), strict=True):
        assert answer["text"] == result.text
        assert answer["reward"] == answer["gold"] == compare.reward.function("", result.text)
        assert answer["usage"]["lm_decoded_tokens"] == result.usage.lm_decoded_tokens
        assert answer["method"] == result.method
        assert "error" not in answer
    assert [name for name, _ in compare.loaded] == ["tiny", "tiny", "other"]


def test_a_method_that_fails_leaves_the_others_alone(compare: Cards) -> None:
    compare.reward.target = None
    ran = compare("compare", "Well?", "-m", "vanilla", "-m", "stars", "-m", "best-of-n:n=2", "--max-tokens", "8")
    assert ran.exit_code == 2
    assert "error: No target reward" in ran.stdout
    assert "failed" in ran.stdout
    assert [line.split()[0] for line in ran.stdout.splitlines()[-3:]] == ["vanilla", "stars", "best-of-n:n=2"]
    printed = json.loads(compare("compare", "Well?", "-m", "stars", "-m", "vanilla", "--max-tokens", "8", "--json").stdout)
    assert "No target reward" in printed["answers"][0]["error"]
    assert printed["answers"][1]["text"]


def test_a_method_without_reward_needs_none(compare: Cards) -> None:
    ran = compare("compare", "Well?", "-m", "vanilla", "--reward", "none", "--max-tokens", "8")
    assert ran.exit_code == 0
    assert "-" in ran.stdout.splitlines()[-1]
    ran = compare("compare", "Well?", "-m", "vanilla", "-m", "best-of-n", "--reward", "none", "--max-tokens", "8")
    assert ran.exit_code == 2
    assert "Method 'best-of-n' needs a reward" in ran.stderr


def test_ctrl_c_keeps_what_there_is(compare: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    show = Pane.show

    def pressed(pane: Pane, event: Event) -> None:
        show(pane, event)
        if isinstance(event, Accepted) and pane.arm.label == "vanilla:chunk=4":
            raise KeyboardInterrupt

    monkeypatch.setattr(Pane, "show", pressed)
    specs = ("-m", "best-of-n:n=2", "-m", "vanilla:chunk=4", "-m", "vanilla")
    ran = compare("compare", "Well?", "--max-tokens", "24", "--json", *specs)
    whole, cut, never = json.loads(ran.stdout)["answers"]
    assert ran.exit_code == 130
    assert (cut["ending"], len(cut["token_ids"]), "text" in never, never["ending"]) == ("interrupted", 4, False, "not run")
    assert whole["text"]
    assert cut["reward"] == compare.reward.function("", cut["text"])


def test_nobody_profits_from_what_another_has_read(compare: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(type(compare.engine), "forget", lambda self: forgotten.append("engine"))
    monkeypatch.setattr(type(compare.reward), "forget", lambda self: forgotten.append("reward"))
    compare("compare", *ARGUMENTS)
    assert forgotten == ["engine", "reward"] * 3


def test_wrong_words_are_one_line_before_anything_is_loaded(compare: Cards) -> None:
    for arguments, said in (
        (("Well?", "-m", "crads"), "Did you mean 'cards'"),
        ((" ",), "The prompt is empty"),
    ):
        ran = compare("compare", *arguments)
        assert (ran.exit_code, len(ran.stderr.splitlines()), compare.loaded) == (2, 1, [])
        assert said in ran.stderr


@pytest.mark.parametrize(("width", "beside"), [(40, 1), (80, 2), (140, 3), (200, 3)])
def test_the_board_fits_the_terminal(width: int, beside: int) -> None:
    panes = [
        Pane(arm, text="word " * 30) for arm in arms_of(["vanilla", "best-of-n", "cards:boundary=fixed:3,max_rejections=4"])
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    console.print(Board(panes, silent=False))
    lines = plain(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in lines) <= width
    assert lines[0].count("╭") == beside
    assert "".join(lines).replace(" ", "").replace("│", "").count("word") == 90

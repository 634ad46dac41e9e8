"""Errors in a command line are reported in one line, before models are loaded."""

from __future__ import annotations

import pytest
from helpers.mock_cli import Cards, plain

import cards.cli
from cards.boundaries import read_boundary
from cards.cli.settings import method_of
from cards.registry import method_class, method_classes
from cards.settings import settings_of

COMMANDS = ("generate", "compare", "batch", "bench", "calibrate", "diagnose", "evaluate", "preferences", "serve", "methods")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "vanila"], "Unknown method 'vanila'. Did you mean 'vanilla'?"),
        (["--method", "vanilla", "--width", "4"], "Methods with --width: cards, cascade, rejection-sampling, stars."),
        (["--method", "rejection-sampling", "--max-rejections", "4"], "Did you mean '--max-candidates'?"),
        (["--beta", "hot"], "--beta must be a number, got 'hot'."),
        (["--beta", "-1"], "beta must be positive, got -1.0."),
        (["--width", "wide"], "--width must be 'auto' or a whole number, got 'wide'."),
        (["--top-k", "2.5"], "--top-k must be a whole number or none, got '2.5'."),
        (["--acceptance", "softt"], "--acceptance must be 'soft' or 'hard', got 'softt'."),
        (["--boundary", "ponctuation"], "Unknown boundary 'ponctuation'. Did you mean 'punctuation'?"),
        (["--boundary", "fixed:many"], "such as fixed:15"),
        (["--boundary", "fixed:0"], "maximum length must be at least its minimum length of 1, got 0"),
        (["--boundary", "whole:3"], "takes no value"),
        (
            ["--boundary", "step", "--measure", "mcp"],
            "--measure set the entropy rule, which --boundary step replaces: leave out one of them.",
        ),
        (["--target", "none", "--alpha", "2"], "alpha must be between 0 and 1, got 2.0."),
    ],
)
def test_a_wrong_setting_is_one_line(cli: Cards, arguments: list[str], said: str) -> None:
    ran = cli("generate", "Well?", *arguments)
    assert ran.exit_code == 2
    [line] = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert ran.stdout == ""
    assert cli.loaded == []


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_prompt_is_refused(cli: Cards, text: str) -> None:
    ran = cli("generate", input=text)
    assert (ran.exit_code, ran.stderr) == (2, "error: The prompt is empty: give a text.\n")
    assert cli.loaded == []


def test_a_method_that_needs_a_reward_says_so(cli: Cards) -> None:
    ran = cli("generate", "Well?", "--reward", "none")
    assert ran.exit_code == 2
    assert "Method 'cards' needs a reward, but --reward is none." in ran.stderr
    assert "such as vanilla" in ran.stderr
    assert cli.loaded == []


def test_a_prompt_too_long_for_the_model_is_refused(cli: Cards) -> None:
    ran = cli("generate", "." * 600)
    assert ran.exit_code == 2
    assert ran.stderr.startswith("error: The prompt has ")


@pytest.mark.parametrize("command", COMMANDS)
def test_all_options_name_their_values_in_the_same_words(cli: Cards, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.strip("│ *") for line in plain(cli(command, "--help").stdout).splitlines()]
    options = [line.partition("  ")[2].split("  ") for line in lines if line.startswith("--")]
    assert len(options) > 3 or command == "methods"
    kinds = {part for parts in options for part in parts if part.strip().startswith("<")}
    assert not kinds
    assert "--help" in " ".join(lines)


def test_an_unknown_option_or_command_names_the_nearest(cli: Cards) -> None:
    option, command = cli("generate", "Well?", "--targt", "2"), cli("generat", "Well?")
    assert (option.exit_code, command.exit_code) == (2, 2)
    assert "--target" in plain(option.stderr)
    assert "generate" in plain(command.stderr)


@pytest.mark.parametrize("method", sorted(method_classes()))
def test_every_setting_of_every_method_is_an_option_that_takes_its_default(cli: Cards, method: str) -> None:
    settings = list(settings_of(method_class(method)).values())
    assert settings
    arguments = [part for s in settings for part in (s.flag, s.default_text) if s.name != "boundary"]
    defaults = {s.name: s.default_text for s in settings if s.name != "boundary"}
    assert method_of(method, {}) == method_of(method, defaults)
    ran = cli("generate", "Well?", "--method", method, "--max-tokens", "8", *arguments)
    if method in ("dola", "spec-reason"):  # the mock has neither layers nor digits
        assert ran.exit_code == 2
        assert "needs layers" in ran.stderr or "digits must be single tokens" in ran.stderr
        return
    assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        ("entropy", None),
        ("fixed", cards.FixedLength()),
        ("fixed:7", cards.FixedLength(maximum=7)),
        ("punctuation", cards.Punctuation()),
        ("punctuation:,.", cards.Punctuation(marks=",.")),
        ("step", cards.Step()),
        ("step:\\n", cards.Step(delimiter="\n")),
        ("whole", cards.Whole()),
    ],
)
def test_a_boundary_is_named(text: str, boundary: cards.boundaries.Boundary | None) -> None:
    assert read_boundary(text) == boundary

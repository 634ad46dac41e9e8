"""`cards generate`: output, messages and errors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from typing import Any

import pytest
from helpers.mock_cli import Cards

import cards
from cards.cli.view import View
from cards.events import Accepted, Event
from cards.rewards import FunctionReward, KeywordReward, LengthReward, WeightedSum

SHORT = ("--max-tokens", "24", "--entropy-threshold", "1.2")


def expected(cli: Cards, **options: object) -> cards.Result:
    decoder = cards.Decoder(cli.engine, cli.reward, cards.CARDS(entropy_threshold=1.2))
    return decoder([{"role": "user", "content": "Well?"}], max_tokens=24, **options)


def test_the_text_is_on_standard_output_and_its_cost_on_standard_error(cli: Cards) -> None:
    ran = cli("generate", "Well?", *SHORT)
    result = expected(cli)
    assert ran.exit_code == 0
    assert ran.stdout == result.text.lstrip() + "\n"
    [line] = ran.stderr.splitlines()
    usage = result.usage
    for part in (
        f"{len(result.token_ids)} tokens kept, {usage.lm_wasted_tokens} wasted",
        f"{usage.rm_calls} RM calls",
        f"{usage.acceptance_rate:.0%} accepted",
        f"{usage.fallback_rate:.0%} fallback",
        f"reward {result.reward:.2f}",
        "tokens/s",
    ):
        assert part in line


def test_json_is_the_result_and_nothing_else_is_on_standard_output(cli: Cards) -> None:
    ran = cli("generate", "Well?", *SHORT, "--json", "--trace", "--seed", "3")
    printed = json.loads(ran.stdout)
    result: dict[str, Any] = expected(cli, seed=3, trace=True).to_dict()
    for books in (printed["usage"], result["usage"]):
        for seconds in ("seconds", "lm_seconds", "rm_seconds"):
            books.pop(seconds)
    assert printed == {"format": 1, **json.loads(json.dumps(result))}
    assert any(segment["rejected"] for segment in printed["segments"])


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_text_can_come_from_standard_input(cli: Cards, arguments: tuple[str, ...]) -> None:
    assert cli("generate", *arguments, *SHORT, input="Well?\n").stdout == cli("generate", "Well?", *SHORT).stdout
    assert cli.engine.prompts[0].messages == ({"role": "user", "content": "Well?"},)


def test_raw_text_is_left_alone(cli: Cards) -> None:
    ran = cli("generate", "--raw", *SHORT, input=" I like\n")
    assert (cli.engine.prompts[0].text, cli.engine.prompts[0].messages) == (" I like\n", None)
    assert ran.stdout.startswith((" ", "\n"))  # white space before the answer is part of it


def test_text_is_raw_where_the_model_has_no_chat_template(cli: Cards) -> None:
    cli.engine.chats = False
    cli("generate", " I like", *SHORT)
    assert cli.engine.prompts[0].messages is None


def test_accepted_text_appears_as_it_is_accepted(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("cards.cli.view.typer.echo", lambda text="", nl=True: shown.append(text))
    cli("generate", "Well?", *SHORT)
    first, *rest = [segment.text for segment in expected(cli).segments]
    assert rest
    assert shown == [first.lstrip(), *rest, ""]


def test_a_trace_has_a_line_for_each_candidate(cli: Cards) -> None:
    ran = cli("generate", "Well?", *SHORT, "--trace")
    result = expected(cli, trace=True)
    header, *lines = ran.stderr.splitlines()[: result.usage.candidates + 1]
    assert header.split() == ["seg", "cand", "verdict", "reward", "thresh", "entropy", "tok", "text"]
    drawn = [(n, s) for n, taken in enumerate(result.segments) for s in (*taken.rejected, taken)]
    assert len(lines) == len(drawn)
    for (position, segment), line in zip(drawn, lines, strict=True):
        number, _, verdict, reward, sign = line.split()[:5]
        assert int(number) == position + 1
        assert verdict == ("accepted" if segment in result.segments else "rejected")
        assert segment.reward is not None
        assert segment.threshold is not None
        assert (float(reward), sign) == (round(segment.reward, 2), "≥" if segment.reward >= segment.threshold else "<")
        assert line.endswith(json.dumps(segment.text))
    assert ran.stdout == result.text.lstrip() + "\n"


def test_a_trace_shows_the_fallback_and_what_was_drawn_without_a_verdict(cli: Cards) -> None:
    ran = cli("generate", "Well?", *SHORT, "--trace", "--target", "50", "--max-rejections", "3")
    rounds = [line.split()[2] for line in ran.stderr.splitlines()[1:] if line.startswith("  1 ")]
    assert rounds in (["rejected"] * 3 + ["untested", "fallback"], ["rejected"] * 3 + ["fallback"])


def test_a_target_out_of_reach_is_one_line_of_warning(cli: Cards) -> None:
    with warnings.catch_warnings(record=True) as leaked:
        ran = cli("generate", "Well?", *SHORT, "--target", "50", "--max-rejections", "3")
    told = [line for line in ran.stderr.splitlines() if line.startswith("warning: 100% of the segments are fallbacks")]
    assert len(told) == 1
    assert "Lower target or raise beta" in told[0]
    assert not leaked
    assert "UserWarning" not in ran.output


@pytest.mark.parametrize("command", [("generate",), ("compare", "-m", "best-of-n:n=2")])
def test_a_constraint_that_the_response_does_not_meet_is_said(
    cli: Cards, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    for reward, missed in (
        (LengthReward(90, 99), ["length:90-99"]),
        (WeightedSum.of([KeywordReward(["zebra"]), LengthReward(0, 99), cli.reward]), ["keywords:zebra"]),
        (LengthReward(0, 99), []),
    ):
        monkeypatch.setattr("cards.placement.load_reward", lambda name, reward=reward, **_: reward)
        options = ("--max-tokens", "6", *(("--target", "1", "--max-rejections", "2") if command == ("generate",) else ()))
        ran = cli(*command, "Well?", *options)
        said = [line for line in ran.stderr.splitlines() if "does not meet" in line]
        assert [line.partition(" does not meet ")[2].partition(".")[0] for line in said] == missed


def test_a_method_without_reward_loads_none(cli: Cards) -> None:
    ran = cli("generate", "Well?", "--method", "vanilla", "--max-tokens", "8")
    assert [name for name, _ in cli.loaded] == ["tiny"]
    assert "RM calls" not in ran.stderr


def test_where_models_go_is_told_to_both(cli: Cards) -> None:
    cli("generate", "Well?", *SHORT, "--device", "cpu", "--slots", "4", "--context", "256", "--reward", "./here")
    options = {"device": "cpu", "slots": 4, "context": 256}
    assert cli.loaded == [("tiny", options), ("./here", options)]


def test_an_answer_ends_before_a_stop_string(cli: Cards) -> None:
    whole = cli("generate", "Well?", *SHORT).stdout
    ran = cli("generate", "Well?", *SHORT, "--stop", " lot", "--stop", "\\n")
    assert whole.startswith(ran.stdout.rstrip("\n"))
    assert " lot" not in ran.stdout.rstrip("\n")
    assert "\n" not in ran.stdout[:-1]


def test_a_deadline_ends_an_answer(cli: Cards) -> None:
    ran = cli("generate", "Well?", "--deadline", "0.000001")
    assert ran.exit_code == 0
    assert ran.stderr.startswith("deadline reached")


@pytest.mark.parametrize("arguments", [(), ("--trace",)])
def test_ctrl_c_keeps_what_was_accepted(cli: Cards, interrupted: None, arguments: tuple[str, ...]) -> None:
    ran = cli("generate", "Well?", *SHORT, *arguments)
    first = expected(cli).segments[0]
    assert ran.exit_code == 130
    assert ran.stdout == first.text.lstrip() + "\n"
    assert f"interrupted · {len(first.token_ids)} tokens kept" in ran.stderr


def test_ctrl_c_under_json_prints_the_partial_result(cli: Cards, interrupted: None) -> None:
    ran = cli("generate", "Well?", *SHORT, "--json")
    result = json.loads(ran.stdout)
    assert ran.exit_code == 130
    assert (result["finish_reason"], len(result["segments"]), result["usage"]["accepted"]) == ("interrupted", 1, 1)
    assert result["usage"]["lm_decoded_tokens"] >= len(result["token_ids"])
    assert result["usage"]["lm_wasted_tokens"] == result["usage"]["lm_decoded_tokens"] - len(result["token_ids"])


def test_a_reward_that_fails_half_way_shows_what_there_was(cli: Cards) -> None:
    def failing(prompt: str, response: str) -> float:
        return float("nan") if response.count("like") + response.count("lot") > 2 else 1.0

    cli.reward = cards.rewards.FunctionReward(failing, target=1.0)
    ran = cli("generate", "Well?", *SHORT)
    closing, error = ran.stderr.splitlines()
    assert ran.exit_code == 2
    assert ran.stdout.strip()
    assert ran.stdout.endswith("\n")
    assert closing.startswith("failed · ")
    assert error.startswith("error: Reward 'failing' must return finite numbers, got nan")


def test_what_the_library_logs_is_one_line_of_warning(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: object) -> FunctionReward:
        logging.getLogger("cards").warning("Reward %r runs without prefix reuse.", name)
        return cli.reward

    monkeypatch.setattr("cards.placement.load_reward", load)
    assert cli("generate", "Well?", *SHORT).stderr.startswith("warning: Reward 'tiny' runs without prefix reuse.\n")


def test_other_failures_keep_their_traceback(cli: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.placement.load_engine", lambda name, **_: 1 / 0)
    assert isinstance(cli("generate", "Well?").exception, ZeroDivisionError)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C right after the first segment is shown."""
    show = View.show

    def pressed(view: View, event: Event) -> None:
        show(view, event)
        if isinstance(event, Accepted):
            raise KeyboardInterrupt

    monkeypatch.setattr(View, "show", pressed)


@pytest.mark.parametrize(
    ("arguments", "piped", "prompt"),
    [
        (["Summarise:"], "I like it\n", "Summarise:\n\nI like it\n"),
        (["-"], "I like it\n", "I like it\n"),
        ([], "I like it\n", "I like it\n"),
        (["I like it"], "", "I like it"),
        (["I like it"], None, "I like it"),
    ],
)
def test_piped_text_follows_the_argument(arguments: list[str], piped: str | None, prompt: str) -> None:
    code = "import sys; from cards.cli.stdin import prompt_text; print(repr(prompt_text(*sys.argv[1:] or [None])))"
    source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if piped is None else {"input": piped}
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, **source)
    assert ran.stdout.strip() == repr(prompt)


def test_without_any_text_there_is_an_error() -> None:
    command = [sys.executable, "-m", "cards", "generate"]
    ran = subprocess.run(command, input=" \n", capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "error: The prompt is empty: give a text.\n")

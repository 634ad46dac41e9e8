"""Structured output, biases and penalties on the command line: those of Python, and faults before a model is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.mock_cli import Cards

import cards
from cards import Grammar, Shaping
from cards.methods import Vanilla

pytest.importorskip("llguidance")
PLAIN = ("--raw", "--method", "vanilla", "--max-tokens", "12", "--seed", "3")
PATTERN = r"( I like| it| a lot){2,3}\."


def python(cli: Cards, shaping: Shaping) -> str:
    return cards.Decoder(cli.engine, None, Vanilla())(" I", max_tokens=12, seed=3, shaping=shaping).text


def test_each_option_is_the_grammar_of_its_name(cli: Cards, tmp_path: Path) -> None:
    lark, schema = tmp_path / "form.lark", tmp_path / "schema.json"
    lark.write_text('start: " I" " like" (" it" | " a")~2 "."')
    schema.write_text("false")
    ways = {
        ("--regex", PATTERN): Grammar.regex(PATTERN),
        ("--choice", " it.", "--choice", " a lot"): Grammar.choice([" it.", " a lot"]),
        ("--choice", r"\n\n"): Grammar.choice(["\n\n"]),
        ("--grammar", str(lark)): Grammar.lark(lark.read_text()),
    }
    for options, grammar in ways.items():
        ran = cli("generate", " I", *PLAIN, *options)
        assert ran.exit_code == 0, ran.stderr
        assert ran.stdout.rstrip("\n") == python(cli, Shaping(grammar)).rstrip("\n")
    assert re.fullmatch(PATTERN, python(cli, Shaping(Grammar.regex(PATTERN))))


def test_biases_and_penalties(cli: Cards) -> None:
    options = ("--logit-bias", "2=-3", "--logit-bias", "6=1.5", "--presence-penalty", "0.5", "--frequency-penalty", "0.25")
    ran = cli("generate", " I", *PLAIN, *options, "--repetition-penalty", "1.2")
    assert ran.stdout == python(cli, Shaping(None, ((2, -3.0), (6, 1.5)), 0.5, 0.25, 1.2)) + "\n"


def test_a_response_that_ends_within_its_grammar_is_said(cli: Cards) -> None:
    ran = cli("generate", " I", *PLAIN[:-4], "--max-tokens", "2", "--regex", PATTERN)
    assert "warning: The response of vanilla does not meet the grammar. It is incomplete: raise --max-tokens." in ran.stderr
    assert "warning" not in cli("generate", " I", *PLAIN, "--regex", PATTERN).stderr


def test_compare_constrains_every_method(cli: Cards) -> None:
    ran = cli("compare", " I", "--raw", "--max-tokens", "12", "--json", "-m", "vanilla", "-m", "best-of-n", "--regex", PATTERN)
    texts = [answer["text"] for answer in json.loads(ran.stdout)["answers"]]
    assert len(texts) == 2
    assert all(re.fullmatch(PATTERN, text) for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--regex", "[a"), "unclosed character class"),
        (("--json-schema", '{"type": "foo"}'), "Invalid type: foo"),
        (("--json-schema", "missing.json"), "--json-schema needs a readable text file, got 'missing.json'"),
        (("--grammar", "missing.lark"), "--grammar needs a readable text file"),
        (("--regex", "a", "--json-object"), "--json-object and --regex both constrain the response"),
        (("--logit-bias", "3"), "must have the form ID=NUMBER"),
        (("--logit-bias", "3=1", "--logit-bias", "3=2"), "each token id once"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "batch"])
def test_faults_are_named_before_a_model_is_loaded(
    cli: Cards, tmp_path: Path, command: str, options: tuple[str, ...], message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": " I"}\n')
    arguments = ("batch", str(source), str(tmp_path / "out.jsonl")) if command == "batch" else ("generate", " I")
    ran = cli(*arguments, *options)
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert not cli.loaded


def test_token_ids_beyond_the_vocabulary_are_named(cli: Cards) -> None:
    ran = cli("generate", " I", *PLAIN, "--logit-bias", "99=1")
    assert ran.exit_code == 2
    assert "logit_bias has the token id 99" in ran.stderr


def test_rows_of_a_batch_have_the_options_or_their_own_format(cli: Cards, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"prompt": " I"},
        {"prompt": " I", "structured_outputs": {"choice": [" it", " a"]}},
        {"prompt": " I", "structured_outputs": json.dumps({"regex": r"( a){2,3}\."})},
        {"prompt": " I", "response_format": {"type": "text"}},
        {"prompt": " I", "response_format": {"type": "xml"}},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("batch", str(source), str(out), "--raw", "--method", "vanilla", "--max-tokens", "12", "--regex", PATTERN)
    ran = cli(*command)
    assert ran.exit_code == 1
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    patterns = (PATTERN, " it| a", r"( a){2,3}\.", r"[\s\S]*")
    assert [bool(re.fullmatch(*pair)) for pair in zip(patterns, texts, strict=True)] == [True] * 4
    [failure] = map(json.loads, (tmp_path / "out.errors.jsonl").read_text().splitlines())
    assert "'xml'" in failure["error"]["message"]
    other = cli(*command[:-1], "( I)+")
    assert other.exit_code == 2  # a batch is not resumed with another grammar
    assert "shaping" in other.stderr

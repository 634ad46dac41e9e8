"""A batch reads the files that people have, and checks them before it loads models."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_cli import Cards, cli  # noqa: F401
from helpers.mock_models import mock
from pyarrow import Table, parquet

from cards import Decoder
from cards.batch.rows import line, parsed, rows, summarize
from cards.batch.work import BatchOptions, RowDecoder
from cards.errors import PromptError, SettingError
from cards.prompts import Chat, read_messages

SMALL = ("--max-tokens", "4", "--method", "vanilla")
USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be kind."}
CHATS: dict[str, Any] = {
    "messages": [SYSTEM, USER],
    "messages with the response": [SYSTEM, USER, {"role": "assistant", "content": "Yes?"}],
    "parts": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}],
    "ShareGPT": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_conversations_are_read_up_to_the_response(chat: list[Any]) -> None:
    assert read_messages(chat) == [SYSTEM, USER]


@pytest.mark.parametrize("field", ["messages", "conversations"])
@pytest.mark.parametrize("name", ["in.jsonl", "in.parquet"])
def test_conversations_in_columns(cli: Cards, here: Path, field: str, name: str) -> None:  # noqa: F811
    row = {field: CHATS["ShareGPT" if field == "conversations" else "messages with the response"]}
    if name == "in.parquet":
        parquet.write_table(Table.from_pylist([row]), here / name)
    else:
        (here / name).write_bytes(line(row))
    ran = cli("batch", name, "out.jsonl", *SMALL)
    assert ran.exit_code == 0, ran.stderr
    assert cli.engine.given == [SYSTEM, USER]


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {}}, "text", {"type": "text"}])
def test_parts_that_are_no_text_are_refused(part: Any) -> None:
    with pytest.raises(PromptError, match="part of a message"):
        read_messages([{"role": "user", "content": [part]}])


CSV = '\ufeffprompt,seed,topic\n"a, ""b""\nc",7,x\n\nd,,y\n'
TEXT = "first\n\n  second\r\n"


@pytest.mark.parametrize("packed", [False, True])
def test_csv_and_text(here: Path, packed: bool) -> None:
    def path(name: str, content: str) -> Path:
        file = here / (name + ".gz" * packed)
        file.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        return file

    table, text = path("in.csv", CSV), path("in.txt", TEXT)
    assert list(rows(table)) == [
        {"prompt": 'a, "b"\nc', "seed": "7", "topic": "x"},
        {"prompt": "d", "seed": "", "topic": "y"},
    ]
    assert list(rows(text)) == [{"prompt": "first"}, {"prompt": "  second"}]
    assert (summarize(table).rows, summarize(text).rows) == (2, 2)


def test_a_row_of_csv_with_too_many_cells_is_an_error_of_this_row(here: Path) -> None:
    (here / "in.csv").write_text("prompt\na\nb,c\n")
    good, bad = rows(here / "in.csv")
    assert parsed(good) == {"prompt": "a"}
    with pytest.raises(PromptError, match="more cells"):
        parsed(bad)


def test_numbers_in_csv_are_read(cli: Cards, here: Path) -> None:  # noqa: F811
    (here / "in.csv").write_text("prompt,seed,max_tokens\n I like,7,2\n I like,,\n I like,x,\n")
    assert cli("batch", "in.csv", "out.jsonl", *SMALL).exit_code == 1
    first, second = map(json.loads, (here / "out.jsonl").read_text().splitlines())
    assert first["seed"] == 7
    assert second["seed"] not in ("", 7)
    assert "seed must be a whole number" in (here / "out.errors.jsonl").read_text()


@pytest.mark.parametrize(
    ("given", "count"),
    [('{"prompt": " I"}\n{"prompt": " a"}\n', 2), (" I\n a\n lot\n", 3), ("", 0), ('\n[ {"prompt": " I"}]', 1)],
)
def test_standard_input(cli: Cards, here: Path, given: str, count: int) -> None:  # noqa: F811
    ran = cli("batch", "-", "out.jsonl", *SMALL, input=given)
    assert ran.exit_code == 0, ran.stderr
    assert len((here / "out.jsonl").read_text().splitlines()) == count
    assert cli("batch", "-", "out.jsonl", *SMALL, input=given).exit_code == 0  # resumes, and finds nothing to do


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("begin", ["", "\ufeff", " \n"])
def test_arrays_of_rows(here: Path, packed: bool, begin: str) -> None:
    wanted: list[Any] = [{"prompt": "ä", "n": 1.5}, {"messages": [USER]}, 3]
    path = here / ("in.json" + ".gz" * packed)
    for text in (json.dumps(wanted, indent=1), *([] if begin else ["\n".join(map(json.dumps, wanted))])):  # also lines
        data = (begin + text).encode()
        path.write_bytes(gzip.compress(data) if packed else data)
        assert [json.loads(raw) for raw in rows(path) if not isinstance(raw, dict)] == wanted
        assert summarize(path).rows == 3


def test_an_array_that_is_cut_off_is_told(here: Path) -> None:
    (here / "in.json").write_text('[{"prompt": "a"},')
    with pytest.raises(SettingError, match=r"in\.json' cannot be read"):
        summarize(here / "in.json")


def test_text_in_brackets_is_no_array(cli: Cards, here: Path) -> None:  # noqa: F811
    assert cli("batch", "-", "out.jsonl", *SMALL, input="[INST] a\n[1] b\n").exit_code == 0
    assert len((here / "out.jsonl").read_text().splitlines()) == 2


VARIABLES = '{"enable_thinking": false, "style": "short"}'


@pytest.mark.parametrize(
    ("row", "system", "variables"),
    [
        ({}, "Be brief.", {"enable_thinking": False, "style": "short"}),
        ({"system": "", "chat_template_kwargs": None}, "Be brief.", {"enable_thinking": False, "style": "short"}),
        ({"system": "Be kind."}, "Be kind.", {"enable_thinking": False, "style": "short"}),
        ({"chat_template_kwargs": {"style": "long"}}, "Be brief.", {"enable_thinking": False, "style": "long"}),
        ({"chat_template_kwargs": '{"style": "long"}'}, "Be brief.", {"enable_thinking": False, "style": "long"}),
        ({"chat_template_kwargs": {"style": None, "tone": 1}}, "Be brief.", {**json.loads(VARIABLES), "tone": 1}),
    ],
)
def test_a_row_has_its_own_system_message_and_variables(row: dict[str, Any], system: str, variables: dict[str, Any]) -> None:
    options = BatchOptions(system="Be brief.", chat_template_kwargs=VARIABLES)
    prompt = RowDecoder(Decoder(mock(), None, "vanilla"), options).prompt({"prompt": "Hi", **row})
    assert isinstance(prompt, Chat)
    assert (list(prompt), prompt.chat_template_kwargs) == ([{"role": "system", "content": system}, USER], variables)


@pytest.mark.parametrize(
    ("row", "message", "options"),
    [
        ({"system": 3}, "system must be text, got 3", {}),
        ({"chat_template_kwargs": "{"}, "must be a JSON object", {}),
        ({"chat_template_kwargs": [1]}, "must be a JSON object", {}),
        ({"chat_template_kwargs": {"tools": []}}, "tools cannot be an argument", {}),
        ({"system": "Be kind."}, "form 'raw' use no chat template", {"raw": True}),
    ],
)
def test_a_wrong_system_message_or_variable_is_an_error_of_its_row(
    row: dict[str, Any], message: str, options: dict[str, Any]
) -> None:
    work = RowDecoder(Decoder(mock(), None, "vanilla"), BatchOptions(**options))
    with pytest.raises(PromptError, match=message):
        work.prompt({"prompt": "Hi", **row})


def test_fields_are_checked_before_models_are_loaded(cli: Cards, here: Path) -> None:  # noqa: F811
    (here / "in.jsonl").write_text('{"id": 1, "promt": "Hi"}\n')
    ran = cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    assert ran.exit_code == 2
    assert "--prompt-field 'promt'" in ran.stderr
    (here / "in.jsonl").write_text('{"prompt": "Hi", "text": "Hello"}\n')
    ran = cli("batch", "in.jsonl", "out.jsonl", *SMALL)
    assert ran.exit_code == 2
    assert "already has the output fields text" in ran.stderr
    assert not cli.loaded
    assert [path.name for path in here.iterdir()] == ["in.jsonl"]


def test_one_row_without_a_prompt_is_an_error_of_this_row() -> None:
    BatchOptions().check_rows([b'{"a": 1}', b"not JSON", b'{"prompt": "Hi"}'])
    BatchOptions().check_rows([])
    with pytest.raises(SettingError, match="Their fields: a"):
        BatchOptions().check_rows([b'{"a": 1}'])


def test_a_batch_that_has_written_nothing_begins_again_with_other_options(cli: Cards, here: Path) -> None:  # noqa: F811
    (here / "in.jsonl").write_text('{"prompt": " I like"}\n')
    assert cli("batch", "in.jsonl", "out.jsonl", *SMALL, "--retry-failed", "--slots", "0").exit_code == 2
    (here / "out.jsonl.state.json").write_text('{"format": 1, "model": "other"}')
    assert cli("batch", "in.jsonl", "out.jsonl", *SMALL).exit_code == 0
    assert cli("batch", "in.jsonl", "out.jsonl", *SMALL, "--seed", "1").exit_code == 2


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_overwrite_begins_again(cli: Cards, here: Path, name: str) -> None:  # noqa: F811
    (here / "in.jsonl").write_text('{"prompt": " I like"}\n{"prompt": ""}\n')
    assert cli("batch", "in.jsonl", name, *SMALL).exit_code == 1
    assert cli("batch", "in.jsonl", "other" + name, *SMALL, "--seed", "1").exit_code == 1
    assert "--overwrite" in cli("batch", "in.jsonl", name, *SMALL, "--seed", "1").stderr
    assert cli("batch", "in.jsonl", name, *SMALL, "--seed", "1", "--overwrite").exit_code == 1
    assert (here / name).read_bytes() == (here / f"other{name}").read_bytes()


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
@pytest.mark.parametrize("mine", ["", ".errors.jsonl"])
def test_overwrite_deletes_no_file_of_others(cli: Cards, here: Path, name: str, mine: str) -> None:  # noqa: F811
    path = here / ("out" + mine if mine else name)
    path.write_text("years of work")
    (here / "in.jsonl").write_text('{"prompt": " I like"}\n')
    ran = cli("batch", "in.jsonl", name, *SMALL, "--overwrite")
    assert ran.exit_code == 2
    assert f"'{path.name}' exists and was not written by `cards batch`" in ran.stderr
    assert path.read_text() == "years of work"


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_an_empty_file_can_be_the_output(cli: Cards, here: Path, name: str) -> None:  # noqa: F811
    (here / name).touch()
    (here / "in.jsonl").write_text('{"prompt": " I like"}\n')
    ran = cli("batch", "in.jsonl", name, *SMALL)
    assert ran.exit_code == 0, ran.stderr
    assert (here / name).stat().st_size

"""Rows are answered together, written in order, as the decoder alone answers them, with few of them in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_batch import prompts, work, write

from cards.backends.http.client import RejectedRequestError
from cards.batch.rows import RawRow, RowReader
from cards.batch.run import WINDOW, run
from cards.batch.work import Outcome, RowDecoder
from cards.errors import CardsError, SettingError, UnavailableError
from cards.events import Message, Prompt, Response
from cards.rewards.base import Reward
from cards.sampling import seed_at


def answered(made: RowDecoder, reader: Any, numbers: Sequence[int], concurrency: int = 4) -> list[Outcome]:
    found: list[Outcome] = []
    asyncio.run(run(made, reader, numbers, found.append, concurrency, asyncio.Event()))
    return found


def test_rows_are_what_the_decoder_gives_in_order(tmp_path: Path) -> None:
    asked = prompts(40)
    asked[1] |= {"seed": 5, "max_tokens": 2}
    reader = RowReader(write(tmp_path / "in.jsonl", asked))
    made = work(seed=100)
    found = answered(made, reader, range(40))
    assert [outcome.number for outcome in found] == list(range(40))
    for i, (outcome, fields) in enumerate(zip(found, asked, strict=True)):
        row = json.loads(outcome.line)
        assert outcome.failed == (fields["prompt"] == "cab")
        if outcome.failed:
            assert row == {
                "row": i,
                "error": {"type": "RewardError", "message": row["error"]["message"]},
                "input": row["input"],
            }
            assert json.loads(row["input"]) == fields
            continue
        options = {"seed": fields.get("seed", seed_at(100, i)), "max_tokens": fields.get("max_tokens", 6)}
        result = made.decoder(fields["prompt"], **options)
        kept = {name: getattr(result, name) for name in ("text", "reward", "finish_reason", "seed", "method")}
        usage = row.pop("usage")
        assert row == fields | {"row": i} | kept
        assert usage.items() <= result.usage.to_dict().items()


def test_the_rows_do_not_depend_on_what_runs_beside_them(tmp_path: Path) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", prompts(30)))
    alone = answered(work(), reader, range(30), 1)
    for concurrency in (2, 16):
        assert [o.line for o in answered(work(), reader, range(30), concurrency)] == [o.line for o in alone]
    assert [o.line for o in answered(work(), reader, [4, 5, 17])] == [alone[i].line for i in (4, 5, 17)]


def test_a_hundred_thousand_rows_take_no_more_memory_than_a_window() -> None:
    """Counts rows that were read and not yet written, and those under way."""
    read = written = most = under_way = widest = 0

    class Endless:
        def __getitem__(self, number: int) -> RawRow:
            nonlocal read, most
            read += 1
            most = max(most, read - written)
            return b"{}"

    class Uneven(RowDecoder):
        async def decode(self, number: int, raw: RawRow) -> Outcome:
            nonlocal under_way, widest
            under_way += 1
            widest = max(widest, under_way)
            for _ in range(number % 7 if number % 1000 else 300):
                await asyncio.sleep(0)
            under_way -= 1
            return Outcome(number, b"")

    def write_one(outcome: Outcome) -> None:
        nonlocal written
        assert outcome.number == written
        written += 1

    made = work()
    uneven = Uneven(made.decoder, made.options)
    asyncio.run(run(uneven, Endless(), range(100_000), write_one, 8, asyncio.Event()))  # type: ignore[arg-type]
    assert (written, most, widest) == (100_000, WINDOW * 8, 8)


def test_a_stop_finishes_what_is_under_way_and_begins_nothing(tmp_path: Path) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", prompts(200)))
    found: list[Outcome] = []
    begun: set[int] = set()
    made = work()
    stop = asyncio.Event()

    class Counting(RowDecoder):
        async def decode(self, number: int, raw: RawRow) -> Outcome:
            assert not stop.is_set()
            begun.add(number)
            return await RowDecoder.decode(self, number, raw)

    def write_one(outcome: Outcome) -> None:
        found.append(outcome)
        if len(found) == 50:
            stop.set()

    asyncio.run(run(Counting(made.decoder, made.options), reader, range(200), write_one, 4, stop))
    assert {outcome.number for outcome in found} == begun == set(range(len(found)))
    assert 50 <= len(found) <= 50 + WINDOW * 4  # some had finished behind a slow one


class Fails(Reward):
    name, target = "fails", 0.0

    def __init__(self, error: CardsError) -> None:
        self.error = error

    async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> list[float]:
        raise self.error


@pytest.mark.parametrize("error", [UnavailableError("The server is down."), SettingError("No target.")])
def test_what_is_nobodys_row_ends_the_batch(tmp_path: Path, error: CardsError) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", prompts(20)))
    made = work()
    made.decoder.reward = Fails(error)
    with pytest.raises(type(error), match=str(error)):
        answered(made, reader, range(20))


@pytest.mark.parametrize(("status", "own"), [(400, True), (413, True), (401, False), (404, False)])
def test_what_a_server_refuses_is_the_row_s_own_if_it_is_its_content(tmp_path: Path, status: int, own: bool) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", prompts(3)))
    made = work()
    made.decoder.reward = Fails(RejectedRequestError("Refused.", status))
    if own:
        assert [outcome.failed for outcome in answered(made, reader, range(3))] == [True] * 3
    else:
        with pytest.raises(RejectedRequestError):
            answered(made, reader, range(3))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": None}, "needs prompt or messages"),
        ({"question": "a"}, "Its fields: question"),
        ({"prompt": 3}, "needs prompt or messages"),
        ({"prompt": "a", "seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens must be a whole number of at least 1, got 0"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens must be"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"prompt": "a" * 600}, "600 tokens"),
    ],
)
def test_bad_rows_fail_with_their_reason(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", [row, {"prompt": "a"}]))
    bad, good = answered(work(), reader, range(2))
    assert (bad.failed, good.failed) == (True, False)
    assert said in json.loads(bad.line)["error"]["message"]


def test_prompts_in_other_fields_and_forms(tmp_path: Path) -> None:
    messages: list[Message] = [{"role": "user", "content": "ab"}]
    rows: list[dict[str, Any]] = [{"q": "ab"}, {"q": messages}, {"q": None, "messages": messages}]
    reader = RowReader(write(tmp_path / "in.jsonl", rows))
    text, spoken, neither = answered(work(prompt_field="q", raw=False), reader, range(3))
    assert json.loads(text.line)["text"] == work().decoder(messages, seed=0, max_tokens=6).text
    assert json.loads(spoken.line)["text"] == work().decoder(messages, seed=seed_at(0, 1), max_tokens=6).text
    assert neither.failed
    [raw] = answered(work(prompt_field="q"), reader, [0])
    assert json.loads(raw.line)["text"] == work().decoder("ab", seed=0, max_tokens=6).text


def test_fields_of_the_input_are_never_lost(tmp_path: Path) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", [{"text": "ab", "reward": 3}]))
    with pytest.raises(SettingError, match=r"output fields text, reward\..* --prefix"):
        answered(work(prompt_field="text"), reader, [0])
    [outcome] = answered(work(prompt_field="text", prefix="our_"), reader, [0])
    row = json.loads(outcome.line)
    assert (row["text"], row["reward"], row["our_row"], row["our_seed"]) == ("ab", 3, 0, 0)
    assert row["our_text"] == work().decoder("ab", seed=0, max_tokens=6).text


def test_the_whole_result_is_there_when_wanted(tmp_path: Path) -> None:
    reader = RowReader(write(tmp_path / "in.jsonl", [{"prompt": "ab"}]))
    [outcome] = answered(work(full=True), reader, [0])
    result = json.loads(json.dumps(work().decoder("ab", seed=0, max_tokens=6).to_dict()))
    row = json.loads(outcome.line)
    clocks = ("seconds", "lm_seconds", "rm_seconds")
    assert row["usage"].keys() == result["usage"].keys()
    for usage in (row["usage"], result["usage"]):
        for clock in clocks:
            del usage[clock]
    assert row == {"prompt": "ab", "row": 0, **result}

"""The trace and the closing line, on terminals of different widths."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from helpers.mock_cli import plain
from rich.console import Console

from cards.cli.view import MIN_WIDTH, View, closing_line
from cards.events import Accepted, Rejected, Result, Scored, Segment
from cards.usage import Usage

TEXT = " It was\na very long sentence, with a great many words in it, so that it must be wrapped somewhere."
SEGMENT = Segment(TEXT, tuple(range(30)), entropy=3.21, reward=0.5, threshold=1.25)


def traced(width: int, **options: Any) -> str:
    view, file = View(trace=True), io.StringIO()
    view.console = Console(file=file, width=width, height=30, highlight=False, markup=False, **options)
    view.__enter__()
    view.show(Rejected(0, 0, SEGMENT))
    view.show(Accepted(0, 1, SEGMENT))
    view.stack.close()
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 60, MIN_WIDTH, 100, 300])
def test_a_trace_fits_the_terminal_and_loses_nothing(width: int) -> None:
    printed = plain(traced(width, force_terminal=True))
    lines = [line.strip("\r") for line in printed.splitlines()]
    assert max(map(len, lines)) <= max(width, 47)
    words = "".join(printed.split())
    assert words.count("".join(json.dumps(TEXT).split())) == 2 or width >= MIN_WIDTH
    for part in ("rejected", "accepted", "0.50", "<", "1.25", "3.21", "30"):
        assert part in printed


def test_verdicts_are_coloured_unless_colour_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[31mrejected" in traced(100, force_terminal=True, color_system="standard")
    assert "\x1b[32maccepted" in traced(100, force_terminal=True, color_system="standard")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in traced(100, force_terminal=True)


def test_a_trace_in_a_file_has_one_plain_line_a_candidate() -> None:
    lines = traced(40).splitlines()
    assert len(lines) == 3
    assert all(line.endswith(json.dumps(TEXT)) for line in lines[1:])
    assert "\x1b" not in "".join(lines)


def test_candidates_of_several_segments_wait_for_their_own_verdicts() -> None:
    view = View(trace=True)
    view.console = Console(file=io.StringIO(), width=100)
    view.show(Scored(0, 0, SEGMENT))
    view.show(Scored(0, 1, SEGMENT))
    view.show(Scored(1, 0, SEGMENT))
    view.show(Accepted(0, 0, SEGMENT))
    view.show(Accepted(1, 0, SEGMENT))
    lines = view.console.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]
    assert [line.split()[:3] for line in lines] == [["1", "2", "untested"], ["1", "1", "accepted"], ["2", "1", "accepted"]]


def test_the_closing_line_leaves_out_what_there_is_none_of() -> None:
    bare = Result("", (), (), None, "length", Usage(), 0, "vanilla")
    assert closing_line(bare) == "token limit reached · 0 tokens kept, 0 wasted · 0.0 s (0.0 tokens/s)"
    usage = Usage(lm_wasted_tokens=5, rm_calls=9, accepted=1, rejected=3, fallbacks=1, seconds=2.0)
    full = Result("ab", (1, 2), (), -0.5, "stop", usage, 0, "cards")
    parts = "2 tokens kept, 5 wasted · 9 RM calls · 25% accepted · 50% fallback · reward -0.50 · 2.0 s (1.0 tokens/s)"
    assert closing_line(full) == f"end of text · {parts}"
    assert closing_line(full, "interrupted") == f"interrupted · {parts}"
    chosen = Result("ab", (1, 2), (), 1.0, "stop", Usage(rm_calls=2, accepted=1, rejected=1), 0, "best-of-n")
    assert "accepted" not in closing_line(chosen)  # it tests nothing

"""Rates and time left are those of this run; failures are those of all."""

from __future__ import annotations

import io

from rich.console import Console

from cards.batch.progress import BatchProgress
from cards.batch.work import Outcome
from cards.usage import Usage


def test_lines_now_and_then_where_nobody_looks() -> None:
    now = 0.0
    printed = io.StringIO()
    cost = Usage(lm_decoded_tokens=30, lm_wasted_tokens=12, draft_kept_tokens=2)
    with BatchProgress(3000, 1000, 2, Console(file=printed, width=200), every=10, clock=lambda: now) as report:
        for number in range(1000, 1100):
            now += 0.25
            report.add(Outcome(number, b"", failed=number == 1050, usage=cost))
    assert printed.getvalue().splitlines() == [
        "1,040 of 3,000 rows, 2 failed, 4.0 rows/s, 80 tokens/s, 0:08:10 left",
        "1,080 of 3,000 rows, 3 failed, 4.0 rows/s, 80 tokens/s, 0:08:00 left",
        "1,100 of 3,000 rows, 3 failed, 4.0 rows/s, 80 tokens/s, 0:07:55 left",
    ]


def test_a_bar_where_somebody_looks() -> None:
    printed = io.StringIO()
    with BatchProgress(4, 0, 0, Console(file=printed, width=120, force_terminal=True)) as report:
        for number in range(4):
            report.add(Outcome(number, b"", usage=Usage(lm_decoded_tokens=1)))
    assert "4 of 4 rows, 0 failed" in printed.getvalue()


def test_a_bar_has_figures_before_the_first_row_is_decoded() -> None:
    now, printed = 0.0, io.StringIO()
    console = Console(file=printed, width=120, force_terminal=True)
    with BatchProgress(4, 0, 0, console, clock=lambda: now) as report:
        now = 3.0
        assert report._bar is not None
        report._bar.refresh()
    assert "0 of 4 rows, 0 failed, 0:00:03 so far" in printed.getvalue()


def test_nothing_to_do() -> None:
    printed = io.StringIO()
    with BatchProgress(4, 4, 1, Console(file=printed, width=120)):
        pass
    assert printed.getvalue() == "4 of 4 rows, 1 failed\n"

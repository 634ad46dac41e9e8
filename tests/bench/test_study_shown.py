"""Tables and plots of all studies: what is on the screen fits it, and plots have readable ticks and no warnings."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from cards.study import plots
from cards.study.evaluate.figures import Figure
from cards.study.evaluate.tables import headline
from cards.study.tables import Table, show_headline, show_tables, split

pytest.importorskip("matplotlib")


def test_tables_stand_under_their_titles_with_space_between_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    title = "a title that is longer than its table " * 2
    show_headline("found")
    show_tables([Table(title, ["", "n"], [["a", "1"]])] * 2)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["found", ""]
    assert " ".join(lines[2:4]) == title.strip()  # on as many lines as the screen needs
    assert lines[6] == ""
    assert lines[2:6] == lines[7:11]


def test_a_wide_table_is_split_into_several_with_the_same_rows() -> None:
    columns = ["", *(f"column {i}" for i in range(9))]
    table = Table("t", columns, [[name, *"123456789"] for name in ("one", "two")])
    first, *rest = split(table, 60)
    assert [part.title for part in rest] == ["t (more)"] * len(rest) != []
    for part in (first, *rest):
        assert [row[0] for row in part.rows] == ["one", "two"]
        assert 3 + sum(len(name) + 2 for name in part.columns[1:]) <= 60
    assert [name for part in (first, *rest) for name in part.columns[1:]] == columns[1:]
    assert split(table, 400) == [table]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (2.1, 2.9, ["2.2", "2.4", "2.6", "2.8"]),
        (1.5, 40.0, ["2", "3", "5", "7", "10", "20", "30"]),
        (1.0, 900.0, ["1", "3", "10", "30", "100", "300"]),
        (1e-3, 1e6, ["0.001", "0.01", "0.1", "1", "10", "100", "1000", "10000", "100000", "1e+06"]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers_as_ticks(low: float, high: float, shown: list[str]) -> None:
    figure, [axis] = plots.panels(1, 4, 3, "bench")
    axis.plot([low, high], [0, 1])
    plots.log_axis(axis, lambda x: f"{x:g}")
    least, most = axis.get_xlim()
    figure.canvas.draw()
    ticks = [(at, label.get_text()) for at, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)]
    assert [text for at, text in ticks if least <= at <= most and low <= at <= high] == shown
    assert not any(label.get_text() for label in axis.get_xticklabels(minor=True))


def test_matplotlib_says_nothing_about_its_fonts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    figure, [axis] = plots.panels(1, 4, 3, "bench")
    axis.set_title("\u6a21\u578b", family="no such font")  # no glyphs, and no font
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plots.save(figure, tmp_path / "a.png") == [tmp_path / "a.png"]
    assert (capfd.readouterr().err, caplog.records) == ("", [])
    assert logging.getLogger("matplotlib").level != logging.CRITICAL


def figures(wins: float, losses: float, p: float, row: str = "cards") -> list[Figure]:
    values = {"wins": wins, "losses": losses, "p": p}
    return [Figure("gold against vanilla, paired by prompt", row, name, "share", v, 0, 1, 9) for name, v in values.items()]


@pytest.mark.parametrize(
    ("found", "held_out", "words"),
    [
        (
            figures(0.7, 0.2, 0.01),
            True,
            "cards is better than vanilla by gold: it wins 70% and loses 20% of the pairs (p = 0.01).",
        ),
        (figures(0.5, 0.4, 0.4), True, "cards is not clearly better than vanilla by gold"),
        (figures(0.1, 0.8, 0.01), True, "cards is worse than vanilla by gold"),
        (figures(0.5, 0.4, 0.4) + figures(0.9, 0.0, 0.001, "best"), True, "best is better than vanilla"),
        (figures(0.7, 0.2, 0.01), False, "No independent model grades these responses"),
        ([Figure("answers", "cards", "prompts", "count", 9, None, None, 9)], True, "1 systems were graded, and not compared."),
    ],
)
def test_the_headline_of_an_evaluation(found: list[Figure], held_out: bool, words: str) -> None:
    assert headline(found, "vanilla", held_out).startswith(words)

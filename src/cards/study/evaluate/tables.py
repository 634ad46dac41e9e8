"""An evaluation report as tables, Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cards.study.evaluate.figures import Figure
from cards.study.statistics import Estimate
from cards.study.tables import NONE, Table, interval, shares, write_report

SIGNIFICANT = 0.05  # p-values below it count as clear in the headline


def tables(figures: Sequence[Figure]) -> list[Table]:
    """Return one table per title."""
    result = []
    for title in dict.fromkeys(figure.table for figure in figures):
        of_title = [figure for figure in figures if figure.table == title]
        cells = {(figure.row, figure.name): formatted(figure) for figure in of_title}
        rows, names = (list(dict.fromkeys(getattr(figure, kind) for figure in of_title)) for kind in ("row", "name"))
        result.append(Table(title, ["", *names], [[row, *(cells.get((row, name), NONE) for name in names)] for row in rows]))
    return result


def headline(figures: Sequence[Figure], baseline: str, held_out: bool) -> str:
    """Return the main finding in one sentence: the system that wins most against the baseline, by the first grader."""
    if not held_out:
        return "No independent model grades these responses, so no system is better: add one with --gold or --judge."
    wins = [figure for figure in figures if figure.name == "wins"]
    if not wins:
        return f"{len({figure.row for figure in figures if figure.table == 'answers'})} systems were graded, and not compared."
    first = [figure for figure in figures if figure.table == wins[0].table]
    names = ("wins", "losses", "gain", "p")
    values = {name: {figure.row: figure.value for figure in first if figure.name == name} for name in names}
    best = max(values["wins"], key=lambda row: (values["wins"][row] - values["losses"][row], values["gain"].get(row, 0.0)))
    won, lost, _, p = (values[name].get(best) for name in names)
    assert won is not None
    assert lost is not None
    verdict = "is not clearly better than"
    if p is not None and p < SIGNIFICANT:
        verdict = "is better than" if won > lost else "is worse than"
    chance = "" if p is None else f" (p = {p:.2g})"
    by = wins[0].table.partition(" against ")[0].partition(" on pairs ")[0]
    return f"{best} {verdict} {baseline} by {by}: it wins {won:.0%} and loses {lost:.0%} of the pairs{chance}."


def formatted(figure: Figure) -> str:
    """Return a value with its interval, as the text of a cell."""
    if figure.unit == "count":
        return f"{figure.value:.0f}"
    if figure.unit == "p":
        return f"{figure.value:.2g}"
    estimate = Estimate(figure.value, figure.low or 0.0, figure.high or 0.0)
    return shares(estimate) if figure.unit == "share" else interval(estimate)


def write(about: Mapping[str, Any], figures: Sequence[Figure], path: Path) -> list[Path]:
    """Write the report next to the journal, as Markdown, CSV and JSON. Return the paths."""
    header = {name: value for name, value in about.items() if isinstance(value, str)}
    rows = [asdict(figure) for figure in figures]
    return write_report(path, header, tables(figures), rows, {**about, "figures": rows})

"""An evaluation report as tables, Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cards.study.evaluate.figures import Figure
from cards.study.statistics import Estimate
from cards.study.tables import NONE, Table, interval, shares, write_report

SCREEN_WIDTH, UNLIMITED_WIDTH = 80, 10**6  # characters


def tables(figures: Sequence[Figure], width: int = SCREEN_WIDTH) -> list[Table]:
    """Return one table per title. A table wider than `width` characters is split into several."""
    result = []
    for title in dict.fromkeys(figure.table for figure in figures):
        of_title = [figure for figure in figures if figure.table == title]
        cells = {(figure.row, figure.name): formatted(figure) for figure in of_title}
        rows, names = (list(dict.fromkeys(getattr(figure, kind) for figure in of_title)) for kind in ("row", "name"))
        columns = {name: [name, *(cells.get((row, name), NONE) for row in rows)] for name in names}
        for number, chunk in enumerate(_chunks(columns, width - max(16, *map(len, rows)))):
            lines = [list(line) for line in zip(["", *rows], *chunk, strict=True)]
            result.append(Table(f"{title} (more)" if number else title, lines[0], lines[1:]))
    return result


def _chunks(columns: dict[str, list[str]], width: int) -> list[list[list[str]]]:
    """Group columns into chunks that fit `width` characters."""
    chunks: list[list[list[str]]] = []
    left = 0
    for column in columns.values():
        needed = max(map(len, column)) + 2
        if not chunks or needed > left:
            chunks.append([])
            left = width
        chunks[-1].append(column)
        left -= needed
    return chunks


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
    return write_report(path, header, tables(figures, UNLIMITED_WIDTH), rows, {**about, "figures": rows})

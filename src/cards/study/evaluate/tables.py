"""Figures as tables, for the terminal and as Markdown in few digits, as CSV and JSON in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cards.study import tables as study_tables
from cards.study.evaluate.figures import Figure
from cards.study.tables import NONE, Table

SCREEN, WHOLE = 80, 10**6  # characters of a line


def tables(figures: Sequence[Figure], width: int = SCREEN) -> list[Table]:
    """One for each name of a table, in pieces where it is wider than that many characters."""
    found = []
    for title in dict.fromkeys(figure.table for figure in figures):
        own = [figure for figure in figures if figure.table == title]
        cells = {(figure.row, figure.name): written(figure) for figure in own}
        rows, names = (list(dict.fromkeys(getattr(figure, kind) for figure in own)) for kind in ("row", "name"))
        columns = {name: [name, *(cells.get((row, name), NONE) for row in rows)] for name in names}
        for number, piece in enumerate(_pieces(columns, width - max(16, *map(len, rows)))):
            lines = [list(line) for line in zip(["", *rows], *piece, strict=True)]
            found.append(Table(f"{title} (more)" if number else title, lines[0], lines[1:]))
    return found


def _pieces(columns: dict[str, list[str]], width: int) -> list[list[list[str]]]:
    """Columns, as many together as fit."""
    pieces: list[list[list[str]]] = []
    left = 0
    for column in columns.values():
        wide = max(map(len, column)) + 2
        if not pieces or wide > left:
            pieces.append([])
            left = width
        pieces[-1].append(column)
        left -= wide
    return pieces


def written(figure: Figure) -> str:
    scale, digits = (100, 0) if figure.unit == "share" else (1, 2)
    value = f"{scale * figure.value:.{digits}f}{'%' if figure.unit == 'share' else ''}"
    if figure.unit == "count":
        return f"{figure.value:.0f}"
    if figure.unit == "p":
        return f"{figure.value:.2g}"
    return f"{value} [{scale * (figure.low or 0):.{digits}f}, {scale * (figure.high or 0):.{digits}f}]"


def to_markdown(about: dict[str, Any], figures: Sequence[Figure]) -> str:
    named = {name: value for name, value in about.items() if isinstance(value, str)}
    return study_tables.to_markdown(named, tables(figures, WHOLE))


def to_csv(figures: Sequence[Figure]) -> str:
    return study_tables.to_csv([asdict(figure) for figure in figures])


def to_json(about: dict[str, Any], figures: Sequence[Figure]) -> str:
    return study_tables.to_json(about | {"figures": [asdict(figure) for figure in figures]})

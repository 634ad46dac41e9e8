"""Tables of a report: rounded on the terminal and in Markdown, at full precision in CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

if TYPE_CHECKING:
    from cards.study.statistics import Estimate

NONE = "-"
FORMAT = 1  # of JSON reports
NAME_WIDTH = 24  # characters after which cells of the first column are folded


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def show_tables(tables: Iterable[Table]) -> None:
    """Print tables on standard output, each under its title and followed by an empty line.

    A table wider than the screen is split into several.
    """
    console = Console(highlight=False, markup=False)
    for table in chain.from_iterable(split(whole, console.width) for whole in tables):
        console.print(Text(table.title, style="bold"))
        shown = ScreenTable(box=None, pad_edge=False)
        name, *columns = table.columns
        shown.add_column(name, overflow="fold", min_width=min(NAME_WIDTH, longest(table, 0)))
        for column in columns:
            shown.add_column(column, justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        console.print()


def longest(table: Table, column: int) -> int:
    """Return the number of characters of the longest cell of a column."""
    return max(len(line[column]) for line in (table.columns, *table.rows))


def split(table: Table, width: int) -> list[Table]:
    """Return the table as one or more tables whose columns fit `width` characters. Each has the first column."""
    room = width - min(NAME_WIDTH, longest(table, 0))
    chunks: list[list[int]] = [[]]
    left = room
    for index in range(1, len(table.columns)):
        needed = longest(table, index) + 2
        if needed > left and chunks[-1]:
            chunks.append([])
            left = room
        chunks[-1].append(index)
        left -= needed

    def part(line: list[str], chunk: list[int]) -> list[str]:
        return [line[0], *(line[index] for index in chunk)]

    titles = [table.title, *[f"{table.title} (more)"] * (len(chunks) - 1)]
    return [
        Table(title, part(table.columns, chunk), [part(row, chunk) for row in table.rows])
        for title, chunk in zip(titles, chunks, strict=True)
    ]


def show_headline(text: str, style: str = "") -> None:
    """Print the finding of a study, which comes before its tables, on standard output."""
    console = Console(highlight=False, markup=False)
    console.print(Text(text, style=f"bold {style}"))
    console.print()


def write_report(
    path: Path,
    header: Mapping[str, Any],
    tables: Iterable[Table],
    rows: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
) -> list[Path]:
    """Write a report next to `path`: header and tables as Markdown, rows as CSV, and everything as JSON. Return the paths."""
    texts = {".md": to_markdown(header, tables), ".csv": to_csv(rows), ".json": to_json(report)}
    for suffix, text in texts.items():
        path.with_suffix(suffix).write_text(text, encoding="utf-8")
    return [path.with_suffix(suffix) for suffix in texts]


def to_markdown(header: Mapping[str, Any], tables: Iterable[Table]) -> str:
    """Return the header as one line, followed by the tables."""
    about = ", ".join(f"{name}: {value}" for name, value in header.items()) + "\n"
    return "\n".join([about, *map(markdown, tables)])


def markdown(table: Table) -> str:
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    return f"**{table.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(report: Mapping[str, Any], indent: int = 1) -> str:
    """Return a report as JSON, with its format version."""
    return json.dumps({"format": FORMAT, **report}, indent=indent, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with the columns of all rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"


def interval(value: Estimate | None) -> str:
    return NONE if value is None else f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def shares(value: Estimate | None) -> str:
    return NONE if value is None else f"{value.mean:.0%} [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def fractions(values: tuple[float | None, ...]) -> str:
    return "/".join(number(value).removeprefix("0") for value in values)


def big(value: float | None) -> str:
    """Format a number with three digits and a metric prefix, for instance 1.23G."""
    if not value:
        return NONE
    for letter in "", "k", "M", "G", "T", "P":
        if value < 999.5:
            return f"{value:.3g}{letter}"
        value /= 1000
    return f"{value:.3g}E"

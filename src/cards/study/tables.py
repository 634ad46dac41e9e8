"""Tables of a report: rounded on the terminal and in Markdown, at full precision in CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table as ScreenTable

if TYPE_CHECKING:
    from cards.study.statistics import Estimate

NONE = "-"
FORMAT = 1  # of JSON reports


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def show_tables(tables: Iterable[Table], *, compact: bool = False) -> None:
    """Print tables on standard output. `compact` folds wide cells and omits the empty line after each table."""
    console = Console(highlight=False, markup=False)
    for table in tables:
        shown = ScreenTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for index, column in enumerate(table.columns):
            if compact or not index:
                width = None if compact else 16
                shown.add_column(column, justify="right" if index else "left", overflow="fold", min_width=width)
            else:
                shown.add_column(column, justify="right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
        if not compact:
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

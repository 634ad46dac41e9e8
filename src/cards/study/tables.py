"""A report as tables: for the terminal and Markdown in few digits, as CSV and JSON in full."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from cards.study.bench.report import Report, Summary
from cards.study.statistics import Estimate

NONE = "-"
Column = tuple[str, Callable[[Summary], str]]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Table]:
    """Quality, the comparison with the baseline, cost, and text."""
    score, base = report.graded, report.baseline
    tie = f"tie: same text, or at most {report.tolerance:g} apart"
    others = [s for s in report.summaries if s.label != base and s.against]
    quality: list[Column] = [("answers", lambda s: str(s.answers)), (score, lambda s: interval(s.score))]
    if score != "reward":
        quality.append(("reward", lambda s: interval(s.reward)))
    found = [
        _table(f"{score}: mean, 95% interval over prompts", quality, report.summaries),
        _table(f"{score} against {base}, paired ({tie})", AGAINST, others),
        _table("cost of an answer", COST, report.summaries),
        _table("text", TEXT, report.summaries),
    ]
    return [table for table in found if table.rows]


def to_markdown(report: Report) -> str:
    about = ", ".join(f"{name}: {report.header[name]}" for name in ("model", "reward", "gold", "prompts")) + "\n"
    return "\n".join([about, *map(markdown, tables(report))])


def markdown(table: Table) -> str:
    lines = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    return f"**{table.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(report: Report) -> str:
    about = {"made_with": report.header, "score": report.graded, "baseline": report.baseline, "tolerance": report.tolerance}
    return json.dumps(about | {"methods": [s.to_dict() for s in report.summaries]}, indent=1, ensure_ascii=False) + "\n"


def to_csv(report: Report) -> str:
    rows = [summary.to_dict() for summary in report.summaries]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(title: str, columns: list[Column], summaries: list[Summary]) -> Table:
    return Table(
        title, ["method", *(name for name, _ in columns)], [[s.label, *(cell(s) for _, cell in columns)] for s in summaries]
    )


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
    """Three digits and a letter: 1.23G."""
    if not value:
        return NONE
    for letter in "", "k", "M", "G", "T", "P":
        if value < 999.5:
            return f"{value:.3g}{letter}"
        value /= 1000
    return f"{value:.3g}E"


AGAINST: list[Column] = [
    ("gain", lambda s: interval(s.against.gain if s.against else None)),
    ("wins", lambda s: shares(s.against.win if s.against else None)),
    ("ties", lambda s: shares(s.against.tie if s.against else None)),
    ("losses", lambda s: shares(s.against.loss if s.against else None)),
]
COST: list[Column] = [
    ("kept", lambda s: number(s.kept, 1)),
    ("drawn", lambda s: number(s.drawn, 1)),
    ("RM read", lambda s: number(s.rm_tokens, 1)),
    ("FLOPs", lambda s: big(s.flops)),
    ("s", lambda s: number(s.seconds, 3)),
    ("latency", lambda s: number(s.latency, 3)),
    ("taken", lambda s: percent(s.acceptance)),
    ("fallback", lambda s: percent(s.fallback)),
]
TEXT: list[Column] = [
    ("distinct 1/2/3", lambda s: fractions(s.distinct)),
    ("rep 2/3/4", lambda s: fractions(s.repetition)),
    ("coher.", lambda s: number(s.coherence)),
    ("ppl", lambda s: number(s.perplexity)),
    ("nll+", lambda s: number(s.excess_nll)),
    ("KL \N{LESS-THAN OR EQUAL TO}", lambda s: number(s.kl_bound)),
]

"""A bench report as tables, Markdown, JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cards.study.bench.report import ArmSummary, BenchReport
from cards.study.statistics import interval_name
from cards.study.tables import Table, big, fractions, interval, number, percent, shares, write_report

Column = tuple[str, Callable[[ArmSummary], str]]


def tables(report: BenchReport) -> list[Table]:
    """Return tables of quality, comparison with the baseline, cost and text metrics."""
    score, base = report.graded, report.baseline
    tie = f"tie: same text, or at most {report.tolerance:g} apart"
    others = [s for s in report.summaries if s.label != base and s.against]
    quality: list[Column] = [("responses", lambda s: str(s.answers)), (score, lambda s: interval(s.score))]
    if score != "reward":
        quality.append(("reward", lambda s: interval(s.reward)))
    all_tables = [
        _table(f"{score}: mean, {interval_name(report.prompts)}", quality, report.summaries),
        _table(f"{score} against {base}, paired ({tie})", AGAINST, others),
        _table("cost per response", COST, report.summaries),
        _table("text", TEXT, report.summaries),
    ]
    return [table for table in all_tables if table.rows]


def write(report: BenchReport, path: Path) -> list[Path]:
    """Write the report next to the results, as Markdown, CSV and JSON. Return the paths."""
    header = {name: report.header[name] for name in ("model", "reward", "gold", "prompts")}
    methods = [summary.to_dict() for summary in report.summaries]
    about = {"made_with": report.header, "score": report.graded, "baseline": report.baseline, "tolerance": report.tolerance}
    return write_report(path, header, tables(report), methods, about | {"methods": methods})


def _table(title: str, columns: list[Column], summaries: list[ArmSummary]) -> Table:
    return Table(
        title, ["method", *(name for name, _ in columns)], [[s.label, *(cell(s) for _, cell in columns)] for s in summaries]
    )


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
    ("accepted", lambda s: percent(s.acceptance)),
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

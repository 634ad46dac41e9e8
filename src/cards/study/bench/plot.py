"""A plot of quality against cost, with one line per method through its budgets."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from cards.study import plots
from cards.study.bench.report import ArmSummary, BenchReport
from cards.study.tables import big

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP*X<>hp"


def save(report: BenchReport, stem: Path) -> list[Path]:
    """Draw STEM.png and STEM.svg. Raises MissingExtraError if matplotlib is missing."""
    panels: list[tuple[str, str, Callable[[ArmSummary], float | None]]] = [
        ("compute", "compute per response, LM and RM (FLOPs)", lambda s: s.flops),
        ("time", "wall-clock time per response in its batch (s)", lambda s: s.seconds),
    ]
    panels = [panel for panel in panels if any(panel[2](s) for s in report.summaries)]  # function rewards count no FLOPs
    names = {summary.line for summary in report.summaries}
    columns = max(1, min(4, 130 // max(map(len, names), default=130)))  # of the legend
    legend = ceil(len(names) / columns)  # lines
    count = max(1, len(panels))
    figure, axes = plots.panels(count, 1 + 5.5 * count, 4.4 + 0.2 * legend, "bench")
    for axis, (heading, title, cost) in zip(axes, panels, strict=False):
        _draw(axis, [(summary, cost(summary)) for summary in report.summaries])
        axis.set_xlabel(title)
        axis.set_title(f"Quality against {heading}", fontsize=10)
    axes[0].set_ylabel(f"{'gold reward' if report.graded == 'gold' else 'reward'} (mean, 95% interval)")
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    about = report.header
    figure.suptitle(
        f"{about['model']} steered by {about['reward']}, graded by {about['gold']}, on {about['prompts']}", fontsize=10
    )
    return plots.save(figure, *(stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")))


def _draw(axis: Axes, points: list[tuple[ArmSummary, float | None]]) -> None:
    lines: dict[str, list[tuple[ArmSummary, float]]] = {}
    for summary, cost in points:
        if cost and summary.score:
            lines.setdefault(summary.line, []).append((summary, cost))
    for number, (line, line_points) in enumerate(lines.items()):
        line_points.sort(key=lambda point: point[1])  # budgets are in the order in which they ran
        scores = [summary.score for summary, _ in line_points if summary.score]
        y = [score.mean for score in scores]
        varied = [summary.label.removeprefix(line).lstrip(":,") for summary, _ in line_points]
        names = {part.partition("=")[0] for text in varied for part in text.split(",") if part}
        marker, colour = MARKERS[number % len(MARKERS)], f"C{number % 10}"
        name = f"{line}, by {' and '.join(sorted(names))}" if names else line
        x = [cost for _, cost in line_points]
        dashes = plots.DASHES[number % len(plots.DASHES)]
        axis.plot(x, y, color=colour, marker=marker, linestyle=dashes, markersize=6, linewidth=1.4, alpha=0.85, label=name)
        axis.errorbar(x, y, plots.bars(scores), color=colour, fmt="none", capsize=2, linewidth=1, alpha=0.45)
        for text, (_, cost), height in zip(varied, line_points, y, strict=True):
            short = ",".join(part.partition("=")[2] for part in text.split(","))
            axis.annotate(short, (cost, height), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour)
    plots.log_axis(axis, lambda x: big(x) if x >= 1 else f"{x:.2g}")

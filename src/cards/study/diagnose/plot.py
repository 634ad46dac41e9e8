"""A diagnosis as a picture: correlations of prefixes by rule and position, and accuracy on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cards.errors import CardsError
from cards.study.diagnose.run import POSITIONS, Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cards.study.statistics import Estimate


def save(found: Figures, path: Path) -> None:
    """Draws a PNG. Raises CardsError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CardsError("The plot needs an extra: pip install 'cards-decoding[calibrate]'.") from error
    panels = [draw for draw, there in ((_prefixes, found.prefixes), (_preferences, found.preferences)) if there]
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for draw, axis in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axis, found)
    figure.savefig(path, dpi=150)


def _prefixes(axis: Axes, found: Figures) -> None:
    for number, (rule, positions) in enumerate(found.prefixes.items()):
        points = [(place + 0.08 * (number - 1), positions[name]["spearman"]) for place, name in enumerate(POSITIONS)]
        _line(axis, [(place, at) for place, at in points if at is not None], rule, number)
    axis.set_xticks(range(len(POSITIONS)), list(POSITIONS))
    axis.set_xlabel("third of the answer in which it is cut")
    axis.set_ylabel("rank correlation with the whole answer's reward")
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_ylim(-1.05, 1.05)
    axis.legend(frameon=False)


def _preferences(axis: Axes, found: Figures) -> None:
    _line(axis, [(float(part.rstrip("%")), at) for part, at in found.preferences.items()], None, 3)
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_xlabel("part of both answers that is read (%)")
    axis.set_ylabel("accuracy on preference pairs")


def _line(axis: Axes, points: list[tuple[float, Estimate]], name: str | None, colour: int) -> None:
    if points:
        x = [place for place, _ in points]
        errors = [[at.mean - at.low for _, at in points], [at.high - at.mean for _, at in points]]
        axis.errorbar(x, [at.mean for _, at in points], errors, marker="o", capsize=3, color=f"C{colour}", label=name)

"""A diagnosis as a picture: correlations of prefixes by rule and position, and accuracy on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cards.study import plots
from cards.study.diagnose.run import POSITIONS, Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cards.study.statistics import Estimate


def save(found: Measurements, path: Path) -> None:
    """Draw a PNG. Raises MissingExtraError if matplotlib is missing."""
    panels = [draw for draw, there in ((_prefixes, found.prefixes), (_preferences, found.preferences)) if there]
    figure, axes = plots.panels(len(panels), 5.5 * len(panels), 4.2, "calibrate")
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, found)
    plots.save(figure, path)


def _prefixes(axis: Axes, found: Measurements) -> None:
    for number, (rule, positions) in enumerate(found.prefixes.items()):
        points = [(place + 0.08 * (number - 1), positions[name]["spearman"]) for place, name in enumerate(POSITIONS)]
        _line(axis, [(place, at) for place, at in points if at is not None], rule, number)
    axis.set_xticks(range(len(POSITIONS)), list(POSITIONS))
    axis.set_xlabel("third of the answer in which it is cut")
    axis.set_ylabel("rank correlation with the whole answer's reward")
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_ylim(-1.05, 1.05)
    axis.legend(frameon=False)


def _preferences(axis: Axes, found: Measurements) -> None:
    _line(axis, [(float(part.rstrip("%")), at) for part, at in found.preferences.items()], None, 3)
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_xlabel("part of both answers that is read (%)")
    axis.set_ylabel("accuracy on preference pairs")


def _line(axis: Axes, points: list[tuple[float, Estimate]], name: str | None, colour: int) -> None:
    if points:
        x = [place for place, _ in points]
        estimates = [at for _, at in points]
        axis.errorbar(
            x, [at.mean for at in estimates], plots.bars(estimates), marker="o", capsize=3, color=f"C{colour}", label=name
        )

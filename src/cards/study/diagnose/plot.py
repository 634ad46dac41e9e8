"""Plots of a diagnosis: correlations of prefixes by boundary and position, and accuracy on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cards.study import plots
from cards.study.diagnose.run import POSITIONS, Measurements

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cards.study.statistics import Estimate


def save(measurements: Measurements, path: Path) -> None:
    """Draw the plots to a file. Raises MissingExtraError if matplotlib is missing."""
    panels = [draw for draw, values in ((_prefixes, measurements.prefixes), (_preferences, measurements.preferences)) if values]
    figure, axes = plots.panels(len(panels), 5.5 * len(panels), 4.2, "calibrate")
    for draw, axis in zip(panels, axes, strict=True):
        draw(axis, measurements)
    plots.save(figure, path)


def _prefixes(axis: Axes, measurements: Measurements) -> None:
    for number, (rule, positions) in enumerate(measurements.prefixes.items()):
        points = [(index + 0.08 * (number - 1), positions[name]["spearman"]) for index, name in enumerate(POSITIONS)]
        _line(axis, [(x, estimate) for x, estimate in points if estimate is not None], rule, number)
    axis.set_title("Do rewards of incomplete responses predict the final ones?", fontsize=10)
    axis.set_xticks(range(len(POSITIONS)), list(POSITIONS))
    axis.set_xlabel("third of the response in which the prefix ends")
    axis.set_ylabel("rank correlation with the final reward")
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_ylim(-1.05, 1.05)
    axis.legend(frameon=False)


def _preferences(axis: Axes, measurements: Measurements) -> None:
    _line(axis, [(float(part.rstrip("%")), estimate) for part, estimate in measurements.preferences.items()], None, 3)
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_title("Does the beginning identify the better response?", fontsize=10)
    axis.set_xlabel("part of both responses that is read (%)")
    axis.set_ylabel("accuracy on preference pairs")


def _line(axis: Axes, points: list[tuple[float, Estimate]], name: str | None, colour: int) -> None:
    if points:
        x = [position for position, _ in points]
        estimates = [estimate for _, estimate in points]
        means = [estimate.mean for estimate in estimates]
        style = plots.DASHES[colour % len(plots.DASHES)]
        axis.errorbar(x, means, plots.bars(estimates), fmt=f"o{style}", capsize=3, color=f"C{colour}", label=name)

"""Shared parts of all plots: figures without a display, files, logarithmic axes and error bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cards.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cards.study.statistics import Estimate


def panels(columns: int, width: float, height: float, extra: str) -> tuple[Figure, list[Axes]]:
    """Return a figure (width and height in inches) and its axes, side by side. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("The plot needs matplotlib", extra) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save(figure: Figure, *paths: Path) -> list[Path]:
    """Draw the figure to each path, in the format of its suffix."""
    for path in paths:
        figure.savefig(path, dpi=150)
    return list(paths)


def log_axis(axis: Axes, label: Callable[[float], str]) -> None:
    """Make the x axis logarithmic, with a grid and ticks at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: label(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3, linewidth=0.5)


def bars(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Return the lengths of the error bars below and above the means, in the form that matplotlib expects."""
    values = list(estimates)
    return [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]

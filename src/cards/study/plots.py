"""Shared parts of all plots: figures without a display, files, logarithmic axes and error bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING

from cards.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cards.study.statistics import Estimate

MAX_TICKS = 8  # of a logarithmic axis
DASHES = ("-", "--", ":", "-.")  # so that lines which cover each other can be told apart


def panels(columns: int, width: float, height: float, extra: str) -> tuple[Figure, list[Axes]]:
    """Return a figure (width and height in inches) and its axes, side by side. Raises MissingExtraError without matplotlib."""
    try:
        with _quiet():
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("The plot needs matplotlib", extra) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what matplotlib says about its fonts: missing glyphs in names of models, and the cache of the first run."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="matplotlib|cards")
            yield
    finally:
        log.setLevel(level)


def save(figure: Figure, *paths: Path) -> list[Path]:
    """Draw the figure to each path, in the format of its suffix."""
    for path in paths:
        with _quiet():
            figure.savefig(path, dpi=150)
    return list(paths)


def log_axis(axis: Axes, label: Callable[[float], str]) -> None:
    """Make the x axis logarithmic, with a grid and plain numbers as ticks. Draw the data first, because their range counts.

    Numbers between powers of ten are ticks as long as there is room for them.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]
    if high > 4 * low:
        powers = [10.0**power for power in range(floor(log10(low)), ceil(log10(high)))]
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            ticks = [digit * power for power in powers for digit in digits if low <= digit * power <= high]
            if len(ticks) <= MAX_TICKS:
                break
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: label(x)))
    axis.set_xlim(low, high)
    axis.grid(alpha=0.3, linewidth=0.5)


def bars(estimates: Iterable[Estimate]) -> list[list[float]]:
    """Return the lengths of the error bars below and above the means, in the form that matplotlib expects."""
    values = list(estimates)
    return [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]

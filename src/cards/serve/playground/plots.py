"""SVG plots of reward and entropy along the response, in percent coordinates so that text keeps its size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from cards.events import Segment
from cards.serve.playground.runs import Run
from cards.study.tables import number

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A point for a candidate. `x` is the number of response tokens up to its end."""

    x: float
    y: float
    style: str
    hint: str


def plots_html(run: Run) -> str:
    """Return the plots that have data."""
    return _reward_plot(run) + _entropy_plot(run)


def _reward_plot(run: Run) -> str:
    marks = [Mark(x, s.reward, style, f"reward {number(s.reward)}") for x, s, style in _candidates(run) if s.reward is not None]
    tau = sorted({(float(x), s.threshold) for x, s, _ in _candidates(run) if s.threshold is not None})
    if not marks:
        return ""
    lines = [("threshold", tau)]
    if run.target is not None:
        lines.append(("target", [(0.0, run.target), (math.inf, run.target)]))
    return _plot("Reward along the response", "reward", marks, lines)


def _entropy_plot(run: Run) -> str:
    known = [(x, s, style) for x, s, style in _candidates(run) if s.entropy is not None]
    marks = [Mark(x, s.entropy, style, f"entropy {number(s.entropy)} nats") for x, s, style in known if s.entropy is not None]
    if not marks:
        return ""
    tau = run.entropy_threshold
    lines = [] if tau is None else [("boundary", [(0.0, tau), (math.inf, tau)])]
    return _plot("Entropy of the token after each segment", "nats", marks, lines)


def _candidates(run: Run) -> Iterator[tuple[int, Segment, str]]:
    """Yield the end, segment and style of each candidate; kept segments come last, so that they are drawn on top."""
    start, kept = 0, list[tuple[int, Segment, str]]()
    for segment in run.segments:
        for other in segment.rejected:
            yield start + len(other.token_ids), other, "other"
        start += len(segment.token_ids)
        kept.append((start, segment, "fallback" if segment.fallback else "accepted"))
    end = start
    for other in run.pending.values():
        yield end + len(other.token_ids), other, "other"
    yield from kept


LABELS = {
    "threshold": "rising threshold",
    "target": "target reward r*",
    "boundary": "entropy threshold tau_u",
    "path": "kept",
}


def _plot(title: str, unit: str, marks: Sequence[Mark], lines: Sequence[tuple[str, Sequence[Point]]]) -> str:
    right = max(mark.x for mark in marks) * 1.04 + 1
    ys = [mark.y for mark in marks] + [y for _, line in lines for _, y in line]
    low, high = min(ys), max(ys)
    padding = 0.08 * (high - low) or 0.5
    low, high = low - padding, high + padding

    def x_of(x: float) -> str:
        return f"{100 * min(x, right) / right:.2f}%"

    def y_of(y: float) -> str:
        return f"{100 * (high - y) / (high - low):.2f}%"

    def path(style: str, points: Sequence[Point]) -> Iterator[str]:
        for (x1, y1), (x2, y2) in pairwise(points):
            yield f'<line class="{style}" x1="{x_of(x1)}" y1="{y_of(y1)}" x2="{x_of(x2)}" y2="{y_of(y2)}"/>'

    parts: list[str] = []
    for y in ticks(low, high):
        parts += path("grid", [(0, y), (math.inf, y)])
        parts.append(f'<text class="y" x="0" y="{y_of(y)}" dx="-8" dy="4">{y:g}</text>')
    for x in ticks(0, right):
        parts.append(f'<text class="x" x="{x_of(x)}" y="100%" dy="18">{x:g}</text>')
    for style, points in lines:
        parts += path(style, points)
    kept = [(mark.x, mark.y) for mark in marks if mark.style != "other"]
    parts += path("path", kept)
    for mark in marks:
        radius = 3 if mark.style == "other" else 5
        parts.append(
            f'<circle class="{mark.style}" cx="{x_of(mark.x)}" cy="{y_of(mark.y)}" r="{radius}"><title>{mark.hint}, '
            f"{mark.x:g} tokens</title></circle>"
        )
    shown = [style for style, points in lines if points] + ["path"]
    keys = "".join(f'<span class="cp-key"><i class="{style}"></i>{LABELS[style]}</span>' for style in shown)
    description = f"{title}: {', '.join(f'{y:.2f} at token {x:g}' for x, y in kept) or 'no segment yet'}."
    return (
        f'<figure class="cp-plot" data-plot="{unit}"><figcaption>{title}</figcaption>'
        f'<svg role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'
        f'<p class="cp-legend"><span class="cp-key">{unit} over tokens</span>{keys}'
        '<span class="cp-key"><i class="other"></i>other candidates</span></p></figure>'
    )


def ticks(low: float, high: float, limit: int = 6) -> list[float]:
    """Return at most `limit` round numbers between `low` and `high`, 1, 2 or 5 times a power of ten apart."""
    step = 10 ** math.floor(math.log10((high - low) / limit))
    step = next(step * k for k in (1, 2, 5, 10, 20) if (high - low) / (step * k) <= limit - 1)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

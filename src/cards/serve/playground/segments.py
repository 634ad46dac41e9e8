"""The response as HTML: a coloured span per segment, which opens to show its candidates."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from cards.console import quoted
from cards.events import Segment
from cards.serve.playground.runs import Run
from cards.study.tables import number

VERDICTS = {  # CSS class: sign and label
    "accepted": ("\N{CHECK MARK}", "accepted"),
    "fallback": ("\N{WARNING SIGN}\N{VARIATION SELECTOR-15}", "fallback"),
    "rejected": ("\N{MULTIPLICATION X}", "rejected"),
    "untested": ("\N{EN DASH}", "untested"),
}


def response_html(run: Run) -> str:
    """Return all segments so far and the latest candidate of the current one."""
    scale = largest_margin(run)
    parts = [_segment(i, segment, run, scale) for i, segment in enumerate(run.segments)]
    if not run.ending:
        parts.append(_current_segment(run))
    elif not run.segments:
        parts.append('<span class="cp-none">No text.</span>')
    return f'<div class="cp-response">{"".join(parts)}</div>{_legend(run, scale)}'


def margin(segment: Segment, run: Run) -> float | None:
    """Return the reward minus the threshold, or minus the target reward if there is no threshold."""
    threshold = segment.threshold if segment.threshold is not None else run.target
    return None if segment.reward is None or threshold is None else segment.reward - threshold


def largest_margin(run: Run) -> float:
    """Return the largest absolute margin of all candidates so far, which gets the full colour."""
    candidates = (c for s in run.segments for c in (s, *s.rejected))
    return max((abs(m) for m in (margin(c, run) for c in candidates) if m is not None), default=0.0) or 1.0


def _segment(index: int, segment: Segment, run: Run, scale: float) -> str:
    """Return a segment with the colour class `above`, `below` or `plain`, and the colour strength `--m` in percent."""
    distance = margin(segment, run)
    side = "plain" if distance is None else "above" if distance >= 0 else "below"
    verdict = "fallback" if segment.fallback else "accepted"
    sign = f'<sup aria-label="fallback">{VERDICTS[verdict][0]}</sup>' if segment.fallback else ""
    first = segment.text.lstrip() if index == 0 else segment.text  # after some chat templates it starts with white space
    figures = ", ".join(f"{name} {value}" for name, value in _figures(segment).items() if value)
    return (
        f'<details class="cp-seg {side} {verdict}" name="{run.id}" id="{run.id}-{index}">'
        f'<summary style="--m:{100 * abs(distance or 0) / scale:.0f}" title="{escape(figures or verdict)}">'
        f"{escape(first) or '<i>no text</i>'}{sign}</summary>{_panel(index, segment, run)}</details>"
    )


def _panel(index: int, segment: Segment, run: Run) -> str:
    rows = [_row("fallback" if segment.fallback else "accepted", segment)]
    rows += [_row("rejected" if other in run.rejected else "untested", other) for other in segment.rejected]
    others = f"{len(segment.rejected)} other candidate{'' if len(segment.rejected) == 1 else 's'}"
    return (
        f'<div class="cp-panel"><p>Segment {index + 1}: {others if segment.rejected else "the only candidate"}</p>'
        '<table><thead><tr><th scope="col">verdict</th><th scope="col">reward</th><th scope="col">threshold</th>'
        '<th scope="col">entropy</th><th scope="col">tokens</th><th scope="col">text</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(verdict: str, segment: Segment) -> str:
    sign, label = VERDICTS[verdict]
    figures = _figures(segment)
    cells = "".join(f'<td class="cp-figure" data-name="{name}">{figures[name] or "-"}</td>' for name in figures)
    return (
        f'<tr class="{verdict}"><th scope="row"><span aria-hidden="true">{sign}</span> {label}</th>{cells}'
        f'<td class="cp-text">{escape(quoted(segment.text))}</td></tr>'
    )


def _figures(segment: Segment) -> dict[str, str]:
    values = {"reward": segment.reward, "threshold": segment.threshold, "entropy": segment.entropy}
    return {name: "" if x is None else number(x) for name, x in values.items()} | {"tokens": str(len(segment.token_ids))}


def _current_segment(run: Run) -> str:
    if not run.pending:
        return '<span class="cp-cursor" aria-hidden="true"></span>'
    rejected = sum(candidate in run.rejected for candidate in run.pending.values())
    last = next(reversed(run.pending.values()))
    return (
        f'<span class="cp-pending" aria-hidden="true">{escape(last.text)}</span>'
        f'<span class="cp-count">{rejected} rejected</span><span class="cp-cursor" aria-hidden="true"></span>'
    )


def _legend(run: Run, scale: float) -> str:
    return f'<p class="cp-legend">{"".join(_keys(run, scale))}</p>'


def _keys(run: Run, scale: float) -> Iterator[str]:
    if any(margin(segment, run) is not None for segment in run.segments):
        reference = "threshold" if any(s.threshold is not None for s in run.segments) else "target reward r*"
        yield f'<span>{number(-scale)}<i class="cp-ramp"></i>+{number(scale)} reward minus {reference}</span>'
    if any(segment.fallback for segment in run.segments):
        yield f'<span class="cp-key">{VERDICTS["fallback"][0]} fallback</span>'
    if run.segments:
        yield '<span class="cp-key">Open a segment to see its candidates.</span>'

"""A result as HTML without scripts: segments coloured by their verdicts, each of which opens to its candidates.

Notebooks show results in this way. The colours are transparent, so they fit light and dark pages.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cards.events import Result, Segment

SIGNS = {
    "accepted": "\N{CHECK MARK}",
    "fallback": "\N{WARNING SIGN}\N{VARIATION SELECTOR-15}",
    "rejected": "\N{MULTIPLICATION X}",
}
COLUMNS = ("verdict", "reward", "threshold", "text", "entropy", "tokens")

# `all: revert` and the doubled prefix undo what notebooks and sites do to tables and details.
STYLE = """
.cards-trace { --accepted: 43, 123, 186; --fallback: 224, 123, 0; --line: rgba(128, 128, 128, 0.4);
  max-width: 60em; font: 1em/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
.cards-trace .response { font-size: 1.1em; line-height: 2; }
.cards-trace .response :is(details, summary, table, th, td) { all: revert; }
.cards-trace .response summary:is(::before, ::after) { content: none; }
.cards-trace .response details { display: inline; }
.cards-trace .response details::details-content { display: block; }
.cards-trace .response details:not([open])::details-content { display: none; }
.cards-trace .response summary { display: inline; list-style: none; cursor: pointer; white-space: pre-wrap;
  padding: 0.2em 0; border-bottom: 2px solid transparent; border-radius: 0.2em; margin-right: 2px; }
.cards-trace .response summary::-webkit-details-marker { display: none; }
.cards-trace .response summary:hover, .cards-trace .response [open] > summary { border-bottom-color: currentColor; }
.cards-trace .response summary:focus-visible { outline: 3px solid rgb(var(--accepted)); }
.cards-trace .candidates { max-height: 22em; overflow: auto; margin: 0.3em 0 0.6em; border: 1px solid var(--line);
  border-radius: 0.3em; }
.cards-trace .response table { width: 100%; border-collapse: collapse; font-size: 0.8em; line-height: 1.5;
  font-variant-numeric: tabular-nums; }
.cards-trace .response :is(th, td) { padding: 0.15em 0.6em; border-top: 1px solid var(--line); color: inherit;
  font-weight: normal; text-align: right; vertical-align: top; white-space: nowrap; }
.cards-trace .response thead th { border-top: 0; }
.cards-trace .response :is(th:first-child, .text) { text-align: left; }
.cards-trace .response .text { width: 100%; min-width: 8em; white-space: pre-wrap; }
.cards-trace .response .accepted > :is(summary, th, td) { background: rgba(var(--accepted), 0.25); }
.cards-trace .response .fallback > :is(summary, th, td) { background: rgba(var(--fallback), 0.3); }
.cards-trace .response .fallback > summary { border-bottom: 2px dashed rgb(var(--fallback)); }
.cards-trace .cost { margin: 0.3em 0 0; font-size: 0.8em; opacity: 0.8; }
"""


def trace_html(result: Result) -> str:
    """Return a result as an HTML element with its own style: the segments of the response, their candidates, and the cost."""
    segments = "".join(_segment(number, segment) for number, segment in enumerate(result.segments, 1))
    return (
        f'<div class="cards-trace"><style>{STYLE}</style><div class="response">{segments or "(no text)"}</div>'
        f'<p class="cost">{escape(_cost(result))}</p></div>'
    )


def _segment(number: int, segment: Segment) -> str:
    verdict = "fallback" if segment.fallback else "accepted"
    text = segment.text.lstrip() if number == 1 else segment.text  # after some chat templates it begins with white space
    heads = "".join(f'<th scope="col" class="{name}">{name}</th>' for name in COLUMNS)
    rows = _row(verdict, segment) + "".join(_row("rejected", other) for other in segment.rejected)
    sign = f"<sup>{SIGNS[verdict]}</sup>" if segment.fallback else ""
    return (
        f'<details class="{verdict}"><summary title="{_title(number, segment)}">'
        f"{escape(text) or '<i>no text</i>'}{sign}</summary>"
        f'<div class="candidates"><table class="rows"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _title(number: int, segment: Segment) -> str:
    candidates = f"{segment.candidates} candidate{'' if segment.candidates == 1 else 's'}"
    unrecorded = segment.candidates > 1 and not segment.rejected
    return f"segment {number}, {candidates}{' (trace=True records them)' if unrecorded else ''}"


def _row(verdict: str, segment: Segment) -> str:
    reward, threshold, entropy = (
        f"<td>{'' if value is None else f'{value:z.2f}'}</td>" for value in (segment.reward, segment.threshold, segment.entropy)
    )
    return (
        f'<tr class="{verdict}"><th scope="row">{SIGNS[verdict]} {verdict}</th>{reward}{threshold}'
        f'<td class="text">{escape(segment.text)}</td>{entropy}<td>{len(segment.token_ids)}</td></tr>'
    )


def _cost(result: Result) -> str:
    usage = result.usage
    parts = [result.method, *([] if result.reward is None else [f"reward {result.reward:z.2f}"])]
    parts.append(f"{len(result.token_ids)} tokens kept, {usage.lm_decoded_tokens + usage.draft_decoded_tokens} decoded")
    if usage.rm_calls:
        parts.append(f"{usage.rm_calls} responses scored")
    return " \N{MIDDLE DOT} ".join([*parts, f"seed {result.seed}"])

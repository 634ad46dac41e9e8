"""The cost of responses: meters for one, a table for several."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cards.serve.playground.runs import Run
from cards.study.tables import big, number, percent

HELP = {
    "reward": "reward of the complete response; higher is better",
    "kept": "tokens of the response",
    "wasted": "decoded tokens that are not part of the response",
    "LM steps": "forward steps of the language model for this request",
    "RM calls": "responses scored by the reward model",
    "accepted": "accepted candidates divided by accepted and rejected candidates",
    "fallback": "fallback segments divided by all segments",
    "FLOPs": "2 x parameters x tokens read, summed over all models",
    "seconds": "seconds from the request to the last event",
}


def figures(run: Run) -> dict[str, str]:
    """Return the values of the meters in HELP. Rates are shown only if there is a rejection or a fallback."""
    result = run.result
    usage = result.usage
    verdicts = bool(usage.rejected or usage.fallbacks)
    return {
        "reward": number(run.reward),
        "kept": str(len(result.token_ids)),
        "wasted": str(usage.lm_wasted_tokens),
        "LM steps": str(usage.lm_steps),
        "RM calls": str(usage.rm_calls),
        "accepted": percent(usage.acceptance_rate if verdicts else None),
        "fallback": percent(usage.fallback_rate if verdicts else None),
        "FLOPs": big(usage.flops),
        "seconds": number(usage.seconds),
    }


def meters_html(run: Run) -> str:
    cells = (f'<div title="{HELP[name]}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value in figures(run).items())
    return f'<dl class="cp-meters">{"".join(cells)}</dl>'


def table_html(runs: Sequence[Run]) -> str:
    """Return a table with one row per run."""
    if not runs:
        return ""
    head = "".join(f'<th scope="col" title="{HELP[name]}">{name}</th>' for name in HELP)
    rows = (
        f'<tr><th scope="row">{escape(run.method)}</th>'
        + "".join(f'<td data-name="{name}">{value}</td>' for name, value in figures(run).items())
        + "</tr>"
        for run in runs
    )
    return (
        '<div class="cp-compare"><table><caption>Cost of the responses</caption>'
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )

"""A run as HTML: state, response, meters and plots."""

from __future__ import annotations

from html import escape

from cards.serve.playground.meters import meters_html
from cards.serve.playground.plots import plots_html
from cards.serve.playground.runs import Run
from cards.serve.playground.segments import response_html

UNALIGNED = "The reward failed, so this response is from plain sampling and not aligned."


def run_html(run: Run) -> str:
    state = "failed" if run.error else "ended" if run.ending else "running"
    name, ending = escape(run.method), escape(run.ending or "decoding")
    warning = run.error or (UNALIGNED if run.unaligned else "")
    error = f'<p class="cp-error" role="alert">{escape(warning)}</p>' if warning else ""
    return (
        f'<section class="cp-run" data-state="{state}" aria-label="Response of {name}">'
        f'<div class="cp-main"><p class="cp-state" role="status"><b>{name}</b> {ending}</p>'
        f'{error}{response_html(run)}{meters_html(run)}</div><div class="cp-plots">{plots_html(run)}</div></section>'
    )

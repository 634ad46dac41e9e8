"""Show one response: accepted text on standard output, the trace and the closing line on standard error."""

from __future__ import annotations

from contextlib import ExitStack

import typer
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from cards.console import ENDINGS, quoted, say, spinner, stderr_console
from cards.events import Accepted, Done, Event, Fallback, Rejected, Result, Scored, Segment
from cards.registry import has_tests

VERDICTS = {"accepted": "green", "rejected": "red", "fallback": "yellow", "untested": "dim"}
HEADER = f"{'seg':>3} {'cand':>4} {'verdict':8} {'reward':>7}   {'thresh':>7} {'entropy':>7} {'tok':>3}"
MIN_WIDTH = len(HEADER) + 26  # of a terminal that shows figures and text side by side


class View:
    """A display of the events of one response.

    trace: print a line per candidate, and the text at the end; silent: print no text; strip: omit whitespace before the text,
    which chat templates provoke.
    """

    def __init__(self, *, trace: bool = False, silent: bool = False, strip: bool = False) -> None:
        self.trace, self.silent, self.strip = trace, silent, strip
        self.console = stderr_console()
        self.has_header = False
        self.verdicts = 0
        self.written = 0  # characters of the response
        self.last = "\n"
        self.pending: dict[tuple[int, int], Segment] = {}  # scored candidates without a verdict
        self.status: Status | None = None
        self.stack = ExitStack()

    def __enter__(self) -> View:
        self.status = self.stack.enter_context(spinner(self.console, "decoding"))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def show(self, event: Event) -> None:
        match event:
            case Scored(position, candidate, segment):
                self.pending[position, candidate] = segment
            case Rejected():
                self._verdict("rejected", event)
            case Accepted():
                self._end_segment("accepted", event)
            case Fallback():
                self._end_segment("fallback", event)
            case Done():
                self.stack.close()

    def close(self, result: Result, ending: str | None = None) -> None:
        """Print the rest of the text and the closing line. `ending` overrides the finish reason of the result."""
        self.stack.close()
        if not self.silent:
            if self.trace:
                self.console.print()
            self._write(result.text[self.written :])
            if self.last != "\n":
                typer.echo()
        say(closing_line(result, ending), "dim")

    def _end_segment(self, verdict: str, event: Accepted | Fallback) -> None:
        for position, candidate in list(self.pending):
            if position == event.position and candidate != event.candidate:
                self._candidate("untested", position, candidate, self.pending.pop((position, candidate)))
        self._verdict(verdict, event)
        if not (self.trace or self.silent):
            self.stack.close()
            self._write(event.segment.text)

    def _verdict(self, verdict: str, event: Rejected | Accepted | Fallback) -> None:
        self.pending.pop((event.position, event.candidate), None)
        self.verdicts += 1
        if self.status is not None:
            self.status.update(f"decoding: {self.verdicts} candidate{'s' if self.verdicts > 1 else ''}")
        self._candidate(verdict, event.position, event.candidate, event.segment)

    def _candidate(self, verdict: str, position: int, candidate: int, segment: Segment) -> None:
        if self.trace:
            if not self.has_header:
                self._line(Text(HEADER, style="dim"), Text("text", style="dim"))
                self.has_header = True
            line = Text(f"{position + 1:3} {candidate + 1:4} ")
            line.append(f"{verdict:8}", style=VERDICTS[verdict]).append(f" {figures(segment)}")
            self._line(line, Text(quoted(segment.text), style="dim" if verdict == "rejected" else ""))

    def _line(self, head: Text, text: Text) -> None:
        """Print both side by side on a wide terminal, below each other on a narrow one, and on one line in a file."""
        if not self.console.is_terminal:
            self.console.print(head, text, soft_wrap=True)
        elif self.console.width < MIN_WIDTH:
            self.console.print(head)
            self.console.print(Padding(text, (0, 0, 0, 9)))
        else:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=len(HEADER), no_wrap=True)
            grid.add_column(overflow="fold")
            grid.add_row(head, text)
            self.console.print(grid)

    def _write(self, text: str) -> None:
        self.written += len(text)
        if self.strip:
            text = text.lstrip()
            self.strip = not text
        if text:
            typer.echo(text, nl=False)
            self.last = text[-1]


def figures(segment: Segment) -> str:
    """Return reward, threshold, entropy and number of tokens as columns. Missing values are blank."""
    sign = " "
    if segment.reward is not None and segment.threshold is not None:
        sign = "\N{GREATER-THAN OR EQUAL TO}" if segment.reward >= segment.threshold else "<"
    values = [f"{'' if x is None else f'{x:.2f}':>7}" for x in (segment.reward, segment.threshold, segment.entropy)]
    return f"{values[0]} {sign} {values[1]} {values[2]} {len(segment.token_ids):3}"


def closing_line(result: Result, ending: str | None = None) -> str:
    """Return how the response ended and what it cost: tokens, RM calls, rates and seconds."""
    usage, kept = result.usage, len(result.token_ids)
    parts = [ending or ENDINGS[result.finish_reason]]
    parts.append(f"{kept} tokens kept, {usage.lm_wasted_tokens} wasted")
    if usage.rm_calls:
        parts.append(f"{usage.rm_calls} RM calls")
    if has_tests(result.method) and usage.acceptance_rate is not None:
        parts.append(f"{usage.acceptance_rate:.0%} accepted")
    if usage.fallback_rate is not None and (has_tests(result.method) or usage.fallbacks):
        parts.append(f"{usage.fallback_rate:.0%} fallback")
    if result.reward is not None:
        parts.append(f"reward {result.reward:.2f}")
    rate = kept / usage.seconds if usage.seconds else 0.0
    parts.append(f"{usage.seconds:.1f} s ({rate:.{0 if rate >= 10 else 1}f} tokens/s)")
    return " \N{MIDDLE DOT} ".join(parts)

"""One answer on the terminal: text on standard output as it is accepted; trace and closing line on standard error."""

from __future__ import annotations

from contextlib import ExitStack

import typer
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from cards.console import ENDINGS, quoted, say, spinner, stderr_console
from cards.events import Accepted, Done, Event, Fallback, Rejected, Result, Scored, Segment

VERDICTS = {"accepted": "green", "rejected": "red", "fallback": "yellow", "untested": "dim"}
HEADER = f"{'seg':>3} {'cand':>4} {'verdict':8} {'reward':>7}   {'thresh':>7} {'entropy':>7} {'tok':>3}"
NARROW = len(HEADER) + 26


class View:
    """Shows the events of one answer. `trace`: a line a candidate, then the text; `silent`: no text at all.

    `strip` leaves out the white space before the text, which chat templates call forth.
    """

    def __init__(self, *, trace: bool = False, silent: bool = False, strip: bool = False) -> None:
        self.trace, self.silent, self.strip = trace, silent, strip
        self.console = stderr_console()
        self.headed = False
        self.judged = 0
        self.written = 0  # characters of the answer
        self.last = "\n"
        self.waiting: dict[tuple[int, int], Segment] = {}  # scored candidates without a verdict
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
                self.waiting[position, candidate] = segment
            case Rejected():
                self._verdict("rejected", event)
            case Accepted():
                self._taken("accepted", event)
            case Fallback():
                self._taken("fallback", event)
            case Done():
                self.stack.close()

    def close(self, result: Result, ending: str | None = None) -> None:
        """The rest of the text and the closing line; `ending` says how it ended where the result does not."""
        self.stack.close()
        if not self.silent:
            if self.trace:
                self.console.print()
            self._write(result.text[self.written :])
            if self.last != "\n":
                typer.echo()
        say(closing_line(result, ending), "dim")

    def _taken(self, verdict: str, event: Accepted | Fallback) -> None:
        for position, candidate in list(self.waiting):
            if position == event.position and candidate != event.candidate:
                self._candidate("untested", position, candidate, self.waiting.pop((position, candidate)))
        self._verdict(verdict, event)
        if not (self.trace or self.silent):
            self.stack.close()
            self._write(event.segment.text)

    def _verdict(self, verdict: str, event: Rejected | Accepted | Fallback) -> None:
        self.waiting.pop((event.position, event.candidate), None)
        self.judged += 1
        if self.status is not None:
            self.status.update(f"decoding, {self.judged} candidate{'s' if self.judged > 1 else ''} judged")
        self._candidate(verdict, event.position, event.candidate, event.segment)

    def _candidate(self, verdict: str, position: int, candidate: int, segment: Segment) -> None:
        if self.trace:
            if not self.headed:
                self._line(Text(HEADER, style="dim"), Text("text", style="dim"))
                self.headed = True
            line = Text(f"{position + 1:3} {candidate + 1:4} ")
            line.append(f"{verdict:8}", style=VERDICTS[verdict]).append(f" {figures(segment)}")
            self._line(line, Text(quoted(segment.text), style="dim" if verdict == "rejected" else ""))

    def _line(self, head: Text, text: Text) -> None:
        """Beside each other where there is room, one line each where nobody looks."""
        if not self.console.is_terminal:
            self.console.print(head, text, soft_wrap=True)
        elif self.console.width < NARROW:
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
    """Reward against threshold, entropy, tokens; blank where there is none."""
    sign = " "
    if segment.reward is not None and segment.threshold is not None:
        sign = "\N{GREATER-THAN OR EQUAL TO}" if segment.reward >= segment.threshold else "<"
    values = [f"{'' if x is None else f'{x:.2f}':>7}" for x in (segment.reward, segment.threshold, segment.entropy)]
    return f"{values[0]} {sign} {values[1]} {values[2]} {len(segment.token_ids):3}"


def closing_line(result: Result, ending: str | None = None) -> str:
    """What the answer cost: tokens kept and thrown away, RM calls, acceptance and fallback rate, seconds."""
    usage, kept = result.usage, len(result.token_ids)
    parts = [ending or ENDINGS[result.finish_reason]]
    parts.append(f"{kept} tokens kept, {usage.lm_wasted_tokens} thrown away")
    if usage.rm_calls:
        parts.append(f"{usage.rm_calls} RM calls")
        if usage.acceptance_rate is not None:
            parts.append(f"{usage.acceptance_rate:.0%} accepted")
        if usage.fallback_rate is not None:
            parts.append(f"{usage.fallback_rate:.0%} fallback")
    if result.reward is not None:
        parts.append(f"reward {result.reward:.2f}")
    rate = kept / usage.seconds if usage.seconds else 0.0
    parts.append(f"{usage.seconds:.1f} s ({rate:.{0 if rate >= 10 else 1}f} tokens/s)")
    return " \N{MIDDLE DOT} ".join(parts)

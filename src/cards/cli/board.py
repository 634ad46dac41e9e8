"""The display of `cards compare`: a pane per method and a table of figures below."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cards.console import ENDINGS
from cards.events import Accepted, Event, Fallback, Result
from cards.study.bench.plan import Arm
from cards.study.tables import big, number, percent

MIN_PANE_WIDTH = 36
COLUMNS = ("reward", "gold", "kept/drawn", "RM read", "FLOPs", "accepted", "fallback", "s")
FIGURES_WIDTH = 69  # of COLUMNS on the terminal


@dataclass(slots=True)
class Pane:
    """The response of one method so far."""

    arm: Arm
    text: str = ""
    ending: str = "waiting"
    result: Result | None = None
    error: str = ""
    grades: dict[str, float | None] = field(default_factory=dict)

    def show(self, event: Event) -> None:
        if isinstance(event, Accepted | Fallback):
            self.text += event.segment.text

    def close(self, result: Result, ending: str | None = None) -> None:
        self.result, self.text = result, result.text
        self.ending = ending or ENDINGS[result.finish_reason]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON: `error` only after an error, `text` only after decoding."""
        found = {"label": self.arm.label, "settings": self.arm.settings, "ending": self.ending}
        if self.error:
            found["error"] = self.error
        return found | (self.result.to_dict() if self.result else {}) | self.grades

    def __rich__(self) -> Panel:
        text = Text(self.text.strip())
        if self.error:
            text.append(f"{' ' if self.text else ''}error: {self.error}", style="red")
        colour = {"decoding": "yellow", "waiting": "dim"}.get(self.ending, "red" if self.error else "green")
        ending = "failed" if self.error else self.ending
        return Panel(text, title=Text(self.arm.label, style="bold"), subtitle=Text(ending, style="dim"), border_style=colour)

    def figures(self) -> list[str]:
        """Return the cells of the table row."""
        if self.result is None:
            return [self.arm.label]
        result, usage = self.result, self.result.usage
        tests = self.arm.method.tests
        return [
            self.arm.label,
            number(self.grades.get("reward")),
            number(self.grades.get("gold")),
            f"{len(result.token_ids)}/{usage.lm_decoded_tokens + usage.draft_decoded_tokens}",
            str(usage.rm_tokens),
            big(usage.flops),
            percent(usage.acceptance_rate if tests else None),
            percent(usage.fallback_rate if tests or usage.fallbacks else None),
            f"{usage.seconds:.2f}",
        ]


class Board:
    """Shows the panes live on a terminal, and once at the end elsewhere."""

    def __init__(self, panes: Sequence[Pane], silent: bool) -> None:
        self.panes, self.silent = panes, silent
        self.stack = ExitStack()

    def __enter__(self) -> Board:
        console = Console(highlight=False, markup=False)
        if self.silent:
            return self
        if console.is_terminal:
            self.stack.enter_context(Live(self, console=console, refresh_per_second=8))
        else:
            self.stack.callback(console.print, self)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        per_row = max(1, min(len(self.panes), options.max_width // MIN_PANE_WIDTH))
        grid = Table.grid(expand=True)
        for _ in range(per_row):
            grid.add_column(ratio=1)
        for start in range(0, len(self.panes), per_row):
            grid.add_row(*self.panes[start : start + per_row])
        yield grid
        table = Table(box=None, pad_edge=False)
        table.add_column("", overflow="fold", max_width=max(12, options.max_width - FIGURES_WIDTH))
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        for pane in self.panes:
            table.add_row(*pane.figures())
        yield table

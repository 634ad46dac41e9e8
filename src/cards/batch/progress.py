"""Progress of a batch: rows, failures, rates and time left, as a bar on a terminal and as periodic lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.text import Text

from cards.batch.work import Outcome
from cards.usage import Usage


class BatchProgress:
    """A progress display, updated with each outcome. Enter it when the models are loaded, because it starts the clock.

    `usage` covers this run; `failed` includes earlier runs.

    every: seconds between lines if the console is not a terminal.
    """

    def __init__(
        self,
        total: int,
        done: int,
        failed: int,
        console: Console,
        *,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.done, self.failed = total, done, failed
        self.console, self.every, self.clock = console, every, clock
        self.decoded, self.broken, self.usage = 0, 0, Usage()  # in this run
        self._started = self._last_line = clock()
        columns = (BarColumn(bar_width=16), Figures(self))
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=done) if self._bar else None

    def __enter__(self) -> BatchProgress:
        self._started = self._last_line = self.clock()
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        self.console.print(str(self), style="dim")

    def add(self, outcome: Outcome) -> None:
        self.decoded += 1
        self.done += 1
        self.failed += outcome.failed
        self.broken += outcome.broken
        self.usage += outcome.usage
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done)
        elif self.clock() - self._last_line >= self.every:
            self._last_line = self.clock()
            self.console.print(str(self), style="dim", soft_wrap=True)

    @property
    def tokens(self) -> int:
        """Number of tokens in the responses of this run."""
        return self.usage.lm_decoded_tokens + self.usage.draft_kept_tokens - self.usage.lm_wasted_tokens

    def __str__(self) -> str:
        seconds = max(self.clock() - self._started, 1e-9)
        parts = [f"{self.done:,} of {self.total:,} rows", f"{self.failed:,} failed"]
        if self.decoded:
            parts += [f"{self.decoded / seconds:,.1f} rows/s", f"{self.tokens / seconds:,.0f} tokens/s"]
            left = timedelta(seconds=round((self.total - self.done) * seconds / self.decoded))
            parts += [f"{left} left"] if left else []
        elif self.done < self.total:
            parts.append(f"{timedelta(seconds=int(seconds))} so far")
        return ", ".join(parts)


class Figures(ProgressColumn):
    """The figures of a batch behind its bar, which are up to date whether or not a row has finished."""

    def __init__(self, report: BatchProgress) -> None:
        super().__init__()
        self.report = report

    def render(self, task: Task) -> Text:
        return Text(str(self.report))

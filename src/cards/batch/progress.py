"""How far a batch is: rows, failures, rates and time left, as a bar where somebody looks, else as a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cards.batch.work import Outcome
from cards.usage import Usage


class BatchProgress:
    """A fold over outcomes. `usage` is the cost of the rows of this run, `failed` counts those of earlier runs too."""

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
        self.here, self.usage = 0, Usage()
        self._begun = self._told = clock()
        columns = (BarColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=total, completed=done) if self._bar else None

    def __enter__(self) -> BatchProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        self.console.print(str(self), style="dim")

    def add(self, outcome: Outcome) -> None:
        self.here += 1
        self.done += 1
        self.failed += outcome.failed
        self.usage += outcome.usage
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=str(self))
        elif self.clock() - self._told >= self.every:
            self._told = self.clock()
            self.console.print(str(self), style="dim", soft_wrap=True)

    @property
    def tokens(self) -> int:
        """Tokens of the answers."""
        return self.usage.lm_decoded_tokens + self.usage.draft_kept_tokens - self.usage.lm_wasted_tokens

    def __str__(self) -> str:
        seconds = max(self.clock() - self._begun, 1e-9)
        parts = [f"{self.done:,} of {self.total:,} rows", f"{self.failed:,} failed"]
        if self.here:
            parts += [f"{self.here / seconds:,.1f} rows/s", f"{self.tokens / seconds:,.0f} tokens/s"]
            left = timedelta(seconds=round((self.total - self.done) * seconds / self.here))
            parts += [f"{left} left"] if left else []
        return ", ".join(parts)

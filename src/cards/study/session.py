"""Sessions: a locked journal, and the work whose rows it does not have yet."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cards.console import one_line_warnings, say, show_error
from cards.errors import CardsError, UnreachableTargetWarning
from cards.files import locked
from cards.progress import run_concurrently
from cards.study.journal import Journal, Row

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
SHOWN_ERRORS = 5


def fail(item: object, error: CardsError) -> str:
    """Raise the error, which ends the work."""
    raise error


@dataclass(slots=True)
class Session:
    """A journal, and the errors of items that failed. Failed items have no row, so the next session repeats them."""

    journal: Journal = field(default_factory=lambda: Journal(None, {}))
    errors: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return self.journal.rows

    def run(self, work: Coroutine[Any, Any, T], rows: str = "rows", runner: Callable[..., T] = asyncio.run) -> T:
        """Run the work and return its result. Warnings, the first errors and the number of new rows are shown at the end.

        On Ctrl-C, finished rows stay in the journal. Unreachable targets cause no warning, because reports show fallback rates.
        """
        path, before = self.journal.path, len(self.rows)
        try:
            with one_line_warnings(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UnreachableTargetWarning)
                result = runner(work)
        except KeyboardInterrupt:
            if path:
                say(f"interrupted: {len(self.rows)} {rows} are in {path}; run the same command again to resume", "dim")
            raise
        if path:
            say(f"added {len(self.rows) - before} {rows} to {path}, which had {before}", "dim")
        for error in self.errors[:SHOWN_ERRORS]:
            show_error(error)
        return result

    async def complete(
        self,
        todo: Mapping[K, T],
        act: Callable[[T], Awaitable[Row]],
        key: Callable[[Row], K],
        concurrency: int,
        title: str,
        note: Callable[[T, CardsError], str] = fail,
    ) -> list[Row]:
        """Call `act` for the items of `todo` whose keys are not in the journal, and add the rows it returns.

        Return the rows of all items, except those that failed. `note` turns an error into text for `errors`, or raises it.
        """
        rows = {key(row): row for row in self.rows}

        async def add(item: tuple[K, T]) -> None:
            rows[item[0]] = row = await act(item[1])
            self.journal.append(row)

        left = [item for item in todo.items() if item[0] not in rows]
        await self.each(left, add, concurrency, title, lambda item, error: note(item[1], error))
        return [rows[name] for name in todo if name in rows]

    async def each(
        self,
        items: Iterable[T],
        act: Callable[[T], Awaitable[None]],
        concurrency: int,
        title: str,
        note: Callable[[T, CardsError], str] = fail,
    ) -> None:
        """Call `act` for all items under a progress bar. `note` turns an error into text for `errors`, or raises it."""

        def failed(item: T, error: CardsError) -> None:
            self.errors.append(note(item, error))

        await run_concurrently(list(items), act, failed, concurrency, None, title)


@contextmanager
def opened(path: Path, header: dict[str, Any], who: str) -> Iterator[Session]:
    """Yield a session on the journal at `path`, locked against other processes. `who` names the command in errors.

    Raises SettingError if the header of the journal differs, or if another process holds the lock.
    """
    with locked(path, who):
        yield Session(Journal.open(path, header))

"""The run of a study: a journal that only this process writes to, and the work that it lacks."""

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
SHOWN = 5  # errors on the screen


def raised(item: object, error: CardsError) -> str:
    """End the work at the first error."""
    raise error


@dataclass(slots=True)
class Session:
    """A journal, and notes on the items that failed: the journal lacks them, and the next session tries them again."""

    journal: Journal = field(default_factory=lambda: Journal(None, {}))
    show: bool | None = None  # progress bars (None: on a terminal)
    errors: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return self.journal.rows

    def run(self, work: Coroutine[Any, Any, T], rows: str = "rows", runner: Callable[..., T] = asyncio.run) -> T:
        """Run the work. Warnings and the first errors are shown at the end, and what became of the journal.

        On Ctrl-C finished rows stay in the journal. Unreachable targets give no warning: reports have the fallback rates.
        """
        path, before = self.journal.path, len(self.rows)
        try:
            with one_line_warnings(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UnreachableTargetWarning)
                result = runner(work)
        except KeyboardInterrupt:
            if path:
                say(f"interrupted: {len(self.rows)} {rows} are in {path}; the same command goes on from there", "dim")
            raise
        if path:
            say(f"{len(self.rows) - before} {rows} added to {path}, {before} were there", "dim")
        for error in self.errors[:SHOWN]:
            show_error(error)
        return result

    async def complete(
        self,
        todo: Mapping[K, T],
        act: Callable[[T], Awaitable[Row]],
        key: Callable[[Row], K],
        concurrency: int,
        title: str,
        note: Callable[[T, CardsError], str] = raised,
    ) -> list[Row]:
        """Add the rows that `act` gives for the items of `todo` whose keys the journal lacks; return the rows of all items."""
        found = {key(row): row for row in self.rows}

        async def add(item: tuple[K, T]) -> None:
            found[item[0]] = row = await act(item[1])
            self.journal.append(row)

        left = [item for item in todo.items() if item[0] not in found]
        await self.each(left, add, concurrency, title, lambda item, error: note(item[1], error))
        return [found[one] for one in todo if one in found]

    async def each(
        self,
        items: Iterable[T],
        act: Callable[[T], Awaitable[None]],
        concurrency: int,
        title: str,
        note: Callable[[T, CardsError], str] = raised,
    ) -> None:
        """Act on all items under a progress bar. On an error `note` returns what to note, and the other items continue."""

        def failed(item: T, error: CardsError) -> None:
            self.errors.append(note(item, error))

        await run_concurrently(list(items), act, failed, concurrency, self.show, title)


@contextmanager
def opened(path: Path, header: dict[str, Any], who: str) -> Iterator[Session]:
    """Yield the session of a journal, which other processes are kept from meanwhile. `who` names the command in errors.

    Raises SettingError if the journal was made with another header, or if another process writes to it.
    """
    with locked(path, who):
        yield Session(Journal.open(path, header))

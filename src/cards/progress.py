"""Progress bars, shown on terminals, and bounded concurrency."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from cards.errors import CardsError

T = TypeVar("T")


@contextmanager
def progress_bar(total: int, show: bool | None, description: str = "decoding") -> Iterator[Callable[[], None]]:
    """Show a progress bar; yield a function to call after each item. show None means: if stderr is a terminal."""
    if not (sys.stderr.isatty() if show is None else show) or not total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


async def run_concurrently(
    items: Sequence[T],
    act: Callable[[T], Awaitable[None]],
    failed: Callable[[T, CardsError], None],
    concurrency: int,
    show: bool | None,
    description: str = "decoding",
) -> None:
    """Call `act` on all items, at most `concurrency` at a time, with a progress bar.

    A CardsError is passed to `failed`, and the remaining items continue. Any other error, or an error of `failed`, cancels
    them and is raised.
    """
    semaphore = asyncio.Semaphore(concurrency)
    with progress_bar(len(items), show, description) as advance:

        async def one(item: T) -> None:
            async with semaphore:
                try:
                    await act(item)
                except CardsError as error:
                    failed(item, error)
                advance()

        try:
            async with asyncio.TaskGroup() as group:
                for item in items:
                    group.create_task(one(item))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

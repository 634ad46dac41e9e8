"""Answers many rows at once, in order, with no more than a window of them in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from cards.batch.rows import Raw, RowReader
from cards.batch.work import Outcome, Work

WINDOW = 8  # rows in memory for each one that is decoded: those behind a slow one can finish meanwhile


async def run(
    work: Work,
    reader: RowReader,
    numbers: Sequence[int],
    write: Callable[[Outcome], None],
    concurrency: int,
    stop: asyncio.Event,
) -> None:
    """Answer the rows of these rising numbers and write each as soon as those before it are written.

    After `stop` no row is begun, and those under way are finished and written.
    """
    gate = asyncio.Semaphore(concurrency)
    pending: deque[asyncio.Task[Outcome | None]] = deque()

    async def one(number: int, raw: Raw) -> Outcome | None:
        async with gate:
            return None if stop.is_set() else await work.answer(number, raw)

    async def written() -> None:
        if (outcome := await pending.popleft()) is not None:
            write(outcome)

    try:
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                if stop.is_set():
                    break
                pending.append(group.create_task(one(number, reader[number])))
                if len(pending) == WINDOW * concurrency:
                    await written()
            while pending:
                await written()
    except ExceptionGroup as errors:  # whatever ends one row's task so ends the batch
        raise errors.exceptions[0] from None
    finally:
        await work.decoder.engine.settle()

"""Concurrent decoding of batch rows, written in input order with a bounded number of rows in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from cards.batch.rows import RawRow, RowReader
from cards.batch.work import Outcome, RowDecoder

WINDOW = 8  # rows in memory per concurrent row: rows behind a slow one can finish in the meantime


async def run(
    row_decoder: RowDecoder,
    reader: RowReader,
    numbers: Sequence[int],
    write: Callable[[Outcome], None],
    concurrency: int,
    stop: asyncio.Event,
    decoded: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Decode the rows with the given numbers, in rising order, and write each one after all rows before it.

    `decoded` is called with each outcome as soon as it is known, and `write` in the order of the rows.
    Once `stop` is set no new row starts. Rows in progress are finished and written.
    """
    gate = asyncio.Semaphore(concurrency)
    pending: deque[asyncio.Task[Outcome | None]] = deque()

    async def decode(number: int, raw: RawRow) -> Outcome | None:
        async with gate:
            if stop.is_set():
                return None
            outcome = await row_decoder.decode(number, raw)
        decoded(outcome)
        return outcome

    async def write_next() -> None:
        if (outcome := await pending.popleft()) is not None:
            write(outcome)

    try:
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                if stop.is_set():
                    break
                pending.append(group.create_task(decode(number, reader[number])))
                if len(pending) == WINDOW * concurrency:
                    await write_next()
            while pending:
                await write_next()
    except ExceptionGroup as errors:  # callers expect the error itself, not the group
        raise errors.exceptions[0] from None
    finally:
        await row_decoder.decoder.engine.settle()

"""Start and cancel requests to a GGUF file in this process, which torch does not share, and print what is left of them.

Prints JSON: `decoding` (requests cancelled while sequences were in use) and `memory` (bytes after each thousand requests).
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from pathlib import Path

from cards.backends.llamacpp.engine import LlamaEngine
from cards.engines.base import Ask
from cards.events import Response

STATM = Path("/proc/self/statm")
PAGE = 4096
TOGETHER = 50


async def main(file: str, thousands: int) -> None:
    engine = LlamaEngine.load(file, dtype="float32", slots=8, threads=1)
    prompt = engine.encode("Once upon a time")
    decoding, memory = 0, []

    async def first_batch(seed: int) -> None:
        async with aclosing(engine.propose(Ask(prompt, Response(), 40, seed=seed, n=2))) as batches:
            await anext(batches)  # only this submits the request

    async def cancelled(seed: int) -> None:
        nonlocal decoding
        task = asyncio.create_task(first_batch(seed))
        for _ in range(1 + seed % 3):
            await asyncio.sleep(0)
        while seed % 5 == 0 and not (task.done() or engine.rows_in_use):
            await asyncio.sleep(0.001)
        decoding += not task.done() and engine.rows_in_use > 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for start in range(0, 1000 * thousands, TOGETHER):
        await asyncio.gather(*map(cancelled, range(start, start + TOGETHER)))
        if (start + TOGETHER) % 1000 == 0:
            await engine.settle()
            assert engine.rows_in_use == 0
            assert engine.scheduler.slots.idle.all()
            memory.append(int(STATM.read_text().split()[1]) * PAGE if STATM.exists() else 0)
    await engine.aclose()
    print(json.dumps({"decoding": decoding, "memory": memory}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))

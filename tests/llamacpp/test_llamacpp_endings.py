"""Requests that end early: Ctrl-C in a decode, and thousands of cancelled requests."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
from helpers.gguf_files import write_mamba

from cards.backends.llamacpp.engine import LlamaEngine
from cards.engines.base import Ask
from cards.events import Response

STATM = Path("/proc/self/statm")
PAGE = 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another signal there.")
def test_ctrl_c_ends_a_decode_with_what_was_accepted_so_far(tmp_path: Path) -> None:
    """The signal arrives while the model decodes: random weights give a long response, and its first text has been shown."""
    model = write_mamba(tmp_path / "mamba.gguf")
    arguments = ["generate", "Once upon a time", "--model", str(model), "--reward", "length:3-30", "--max-tokens", "500"]
    command = [sys.executable, "-u", "-X", "faulthandler", "-m", "cards", *arguments, "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    told = errors.decode()
    assert first
    assert process.returncode == 130, told
    assert "interrupted" in told
    assert "Traceback" not in told
    assert "Fatal" not in told


@pytest.mark.slow
async def test_10000_cancelled_requests_leave_no_sequence_taken_and_no_memory(lm_file: str) -> None:
    engine = LlamaEngine.load(lm_file, dtype="float32", slots=8, threads=1)
    prompt = engine.encode("Once upon a time")

    async def cancelled(seed: int) -> None:
        async with aclosing(engine.propose(Ask(prompt, Response(), 4, seed=seed, n=2))) as batches:
            if seed % 100 == 0:
                await anext(batches)
            elif seed % 5:
                await asyncio.sleep(0)  # the request waits or runs

    async def cancel(count: int) -> int:
        """Start and cancel requests, 50 at a time, and return the memory of this process in bytes."""
        for start in range(0, count, 50):
            await asyncio.gather(*map(cancelled, range(start, start + 50)))
        await engine.settle()
        assert engine.rows_in_use == 0
        assert engine.scheduler.slots.idle.all()
        return int(STATM.read_text().split()[1]) * PAGE if STATM.exists() else 0

    before = await cancel(1000)
    assert await cancel(9000) - before < 5e6
    await engine.aclose()

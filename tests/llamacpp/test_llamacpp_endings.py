"""Requests that end early: Ctrl-C in a decode, and thousands of cancelled requests."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import cancelled_requests
from helpers.gguf_files import write_mamba


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another signal there.")
def test_ctrl_c_ends_a_decode_with_what_was_accepted_so_far(tmp_path: Path) -> None:
    """The signal arrives while the model decodes: random weights give a long response, and its first text has been shown."""
    model = write_mamba(tmp_path / "mamba.gguf", context=100_000)
    arguments = ["generate", "Once upon a time", "--model", str(model), "--reward", "length:3-30", "--threads", "1"]
    length = ["--context", "100000", "--slots", "4", "--max-tokens", "90000"]  # minutes
    command = [sys.executable, "-u", "-X", "faulthandler", "-m", "cards", *arguments, *length]
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
def test_10000_cancelled_requests_leave_no_sequence_taken_and_no_memory(lm_file: str) -> None:
    command = [sys.executable, cancelled_requests.__file__, lm_file, "10"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["decoding"] > 1000
    assert told["memory"][-1] - told["memory"][2] < 3e6

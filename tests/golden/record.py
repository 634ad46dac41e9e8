"""Record the golden results: `python tests/golden/record.py`, with the code to record on PYTHONPATH."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import recording
import torch
from cases import METHODS

FILE = Path(__file__).parent / "methods.json.gz"


def read() -> Any:
    return json.loads(gzip.decompress(FILE.read_bytes()))


def main() -> None:
    """Write the results. The file is the same, byte for byte, for the same results."""
    torch.set_num_threads(1)
    found = {name: recording.method(name) for name in METHODS}
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()

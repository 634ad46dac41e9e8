"""Split files and LoRA adapters give the logits of one file with all weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.gguf_files import write_adapter, write_gguf
from numpy.typing import NDArray

from cards.errors import ModelError
from cards.events import Response
from cards.registry import load_engine


async def logits(file: Path | str, **options: Any) -> NDArray[np.float32]:
    """Return the logits after a prompt."""
    engine = load_engine(str(file), dtype="float32", threads=1, slots=2, **options)
    found = await engine.logits(engine.encode("Once upon a time"), Response())
    await engine.aclose()
    return found


async def test_a_split_file_gives_the_logits_of_the_whole_one(lm_file: str, tmp_path: Path) -> None:
    write_gguf("lm", tmp_path / "lm.gguf", split=20)
    parts = sorted(tmp_path.iterdir())
    assert [part.name for part in parts] == [f"lm-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    wanted = await logits(lm_file)
    for part in parts:  # any of them names the model
        assert (await logits(part) == wanted).all()
    parts[2].write_bytes(parts[2].read_bytes()[:-1000])
    with pytest.raises(ModelError, match="not within the file bounds"):
        load_engine(str(parts[0]))


async def test_an_adapter_gives_the_logits_of_the_merged_weights(lm_file: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"blk.0.attn_q.weight": (256, 256), "blk.2.ffn_down.weight": (256, 768)}  # outputs, inputs
    parts = {
        name: (random.normal(0, 0.3, (4, inputs)).astype(np.float32), random.normal(0, 0.3, (outputs, 4)).astype(np.float32))
        for name, (outputs, inputs) in shapes.items()
    }
    adapter = write_adapter(tmp_path / "adapter.gguf", parts, alpha=8.0)
    plain = await logits(lm_file)
    for scale in (1.0, 0.25):
        changes = {name: scale * 8.0 / 4 * (b @ a) for name, (a, b) in parts.items()}
        wanted = await logits(write_gguf("lm", tmp_path / "merged.gguf", changes=changes))
        assert np.abs(wanted - plain).max() > 0.1
        for lora in (f"{adapter}:{scale}", [(str(adapter), scale)]):
            assert np.abs(await logits(lm_file, lora=lora) - wanted).max() < 1e-3

"""How often rounding decides about a response: a quantised GGUF file against the same model in float32, and in a batch."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import gguf

from cards import CARDS, Decoder
from cards.registry import load_engine, load_reward

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.gguf_files import write_gguf

QUESTION = "What did you think of the new Star Wars film?"


async def texts(file: Path, seeds: int) -> dict[str, list[str]]:
    """Return the responses with each seed: alone, alone with one candidate at a time, and all of them together."""
    engine, reward = load_engine(str(file), dtype="float32"), load_reward("tiny", dtype="float32")

    async def text(seed: int, width: int | str) -> str:
        method = CARDS(max_rejections=8, width=width)  # type: ignore[arg-type]
        return (await Decoder(engine, reward, method).agenerate(QUESTION, seed=seed, max_tokens=48)).text

    return {
        "alone": [await text(seed, "auto") for seed in range(seeds)],
        "width 1": [await text(seed, 1) for seed in range(seeds)],
        "together": list(await asyncio.gather(*(text(seed, "auto") for seed in range(seeds)))),
    }


async def main(seeds: int) -> None:
    kinds = {kind.name: kind for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0)}
    with tempfile.TemporaryDirectory() as folder:
        found = {name: await texts(write_gguf("lm", Path(folder, f"{name}.gguf"), kind), seeds) for name, kind in kinds.items()}
    pairs = [(("Q8_0", "alone"), ("F32", "alone"))]
    pairs += [((name, "alone"), (name, other)) for name in kinds for other in ("width 1", "together")]
    for one, other in pairs:
        differ = sum(a != b for a, b in zip(found[one[0]][one[1]], found[other[0]][other[1]], strict=True))
        print(f"{' '.join(one)} against {' '.join(other)}: {differ} of {seeds} texts differ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="number of seeds")
    asyncio.run(main(parser.parse_args().seeds))

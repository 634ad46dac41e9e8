"""A decoder without weights for batches, and helpers for their files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from cards import Decoder
from cards.batch.rows import line
from cards.batch.work import BatchOptions, RowDecoder
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.errors import RewardError
from cards.events import Segment
from cards.rewards import FunctionReward

VOCABULARY = ["</s>", *"abc "]


def chances(ids: tuple[int, ...]) -> list[float]:
    return [0.1, 0.3, 0.2 + 0.1 * (len(ids) % 2), 0.2 - 0.1 * (len(ids) % 2), 0.2]


class Uneven(MockEngine):
    """Some prompts take much longer than others."""

    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        for _ in range(len(ask.prompt.text) * 7 % 23):
            await asyncio.sleep(0)
        async for segments in super().propose(ask):
            yield segments


def likes(prompt: str, response: str) -> float:
    if "cab" in prompt:
        raise RewardError("no")
    return response.count("b") - 0.1 * len(response)


def decoder(method: str = "cards", **options: Any) -> Decoder:
    return Decoder(Uneven(chances, VOCABULARY, end="</s>", **options), FunctionReward(likes, target=1.0), method)


def work(method: str = "cards", rows: int = 4, **shape: Any) -> RowDecoder:
    return RowDecoder(decoder(method, rows=rows), BatchOptions(**{"max_tokens": 6, "raw": True, **shape}))


def prompts(count: int) -> list[dict[str, Any]]:
    """Return rows with texts of several lengths; every seventh row fails."""
    return [{"prompt": "cab" if i % 7 == 3 else "ab " * (1 + i % 5), "topic": i} for i in range(count)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(line, rows)))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

"""`cards batch` on a slow model without weights; test_kill.py kills it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cards.cli
import cards.cli.generate
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.events import Segment
from cards.rewards import FunctionReward

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.mock_batch import VOCABULARY, chances, likes


class Slow(MockEngine):
    async def propose(self, ask: Ask) -> AsyncGenerator[list[Segment], None]:
        await asyncio.sleep(0.005)
        async for segments in super().propose(ask):
            yield segments


def main(**patches: Any) -> None:
    engine = Slow(chances, VOCABULARY, end="</s>", rows=4)
    reward = FunctionReward(likes, target=1.0)
    with patch.multiple("cards.placement", load_engine=lambda *_, **__: engine, load_reward=lambda *_, **__: reward):
        cards.cli.main()


main()

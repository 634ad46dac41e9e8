"""Readiness of the models: after a failure they are checked until they respond again."""

from __future__ import annotations

import asyncio

from cards.decoder import Decoder
from cards.engines.base import Engine
from cards.events import Response
from cards.methods.vanilla import Vanilla
from cards.rewards.base import Reward
from cards.serve.errors import public

TIMEOUT = 5.0  # seconds


class Readiness:
    """A check of the models that sends them nothing unless a failure was reported."""

    def __init__(self, engine: Engine, reward: Reward | None) -> None:
        self.engine, self.reward = engine, reward
        self.failed = False
        self._lock = asyncio.Lock()

    def report_failure(self) -> None:
        self.failed = True

    async def check(self) -> str | None:
        """Return which model fails, or None. The text has no error message, which might quote a client's prompt."""
        async with self._lock:
            if not self.failed:
                return None
            try:
                async with asyncio.timeout(TIMEOUT):
                    checked = f"model {public(self.engine.name)!r}"
                    await Decoder(self.engine, None, Vanilla()).agenerate("Hello", max_tokens=1)
                    if self.reward is not None:
                        checked = f"reward {public(self.reward.name)!r}"
                        await self.reward.score(self.engine.encode("Hello"), [Response()])
            except Exception as error:
                return f"The {checked} failed: {type(error).__name__}."
            self.failed = False
            return None

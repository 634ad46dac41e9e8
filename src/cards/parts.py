"""What engines, rewards and decoders have in common: they may be made of other models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Composite:
    """A model, or something made of models: what is done to it is done to its `parts`. Models without parts override."""

    parts: Sequence[Composite] = ()

    def forget(self) -> None:
        """Drop what is kept of earlier texts; results do not change."""
        for part in self.parts:
            part.forget()

    async def settle(self) -> None:
        """Wait until the costs of cancelled work are counted."""
        await asyncio.gather(*(part.settle() for part in self.parts))

    async def aclose(self) -> None:
        """Free threads, memory and connections."""
        for part in self.parts:
            await part.aclose()

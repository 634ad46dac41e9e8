"""The common base of decoders, engines, rewards and their schedulers, hosts and clients, which can consist of parts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Composite:
    """An object with caches, threads or connections, or one that forwards each call to its `parts`.

    Objects without parts override these methods.
    """

    parts: Sequence[Composite] = ()

    def forget(self) -> None:
        """Clear the caches. Results do not change."""
        for part in self.parts:
            part.forget()

    async def settle(self) -> None:
        """Wait until the cost of cancelled calls is counted."""
        await asyncio.gather(*(part.settle() for part in self.parts))

    async def aclose(self) -> None:
        """Release threads, memory and connections."""
        for part in self.parts:
            await part.aclose()

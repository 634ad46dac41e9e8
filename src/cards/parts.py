"""The common base of decoders, engines, rewards and their schedulers, hosts and clients, which can consist of parts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar


class Composite:
    """An object with caches, threads or connections, or one that forwards each call to its `parts`.

    Objects without parts override these methods.
    """

    libraries: ClassVar[frozenset[str]] = frozenset()  # modules whose versions can change its results
    parts: Sequence[Composite] = ()

    def all_libraries(self) -> frozenset[str]:
        """Return the libraries of this object and of its parts."""
        return self.libraries.union(*(part.all_libraries() for part in self.parts))

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

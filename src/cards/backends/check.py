"""The check of a model for this process, without its weights. A wrong name is refused before transformers is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cards.backends.files import Kind, locate

if TYPE_CHECKING:
    from cards.backends.checkpoint import Checkpoint


def check_local(name: str, kind: Kind, *, token: str | None = None, **options: Any) -> list[Checkpoint]:
    """Return the checkpoint, alone in a list, if it can be loaded in this process, as far as this is known without weights.

    Options are those of the loaders. Raises UnknownNameError, MissingExtraError or ModelError.
    """
    found = locate(name, kind, token)
    from cards.backends.local.loading import open_checkpoint

    return [open_checkpoint(name, kind, token=token, found=found, **options)]

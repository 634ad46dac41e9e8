"""Checks of models without their weights. A wrong name is refused before transformers is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cards.backends.files import Kind, locate

if TYPE_CHECKING:
    from cards.backends.checkpoint import Checkpoint


def check_local(name: str, kind: Kind, *, token: str | None = None, **options: Any) -> list[Checkpoint]:
    """Return the checkpoint, alone in a list, if it can be loaded in this process, as far as this is known without weights.

    Options are those of the loaders. Raises UnknownNameError, MissingExtraError, ModelError or
    SettingError.
    """
    found = locate(name, kind, token)
    from cards.backends.local.loading import open_checkpoint

    checkpoint, _, _ = open_checkpoint(name, kind, token=token, found=found, **options)
    return [checkpoint]


def check_vllm(name: str, kind: Kind, *, token: str | None = None, **options: Any) -> list[Checkpoint]:
    """Return the checkpoint, alone in a list, if vLLM can load it, as far as this is known without weights.

    Options are those of the loaders. Raises as `check_local`.
    """
    found = locate(name, kind, token)
    from cards.backends.vllm.check import prepare

    checkpoint, _, _ = prepare(name, kind, token=token, found=found, **options)
    return [checkpoint]

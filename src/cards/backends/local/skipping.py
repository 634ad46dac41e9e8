"""An LM without some of its layers, as a draft for itself: the same weights, slots of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from cards.errors import ModelError, check


def layers_to_skip(model: PreTrainedModel, share: float) -> list[int]:
    """The numbers of this fraction of the layers. Raises SettingError or ModelError if the model has no such layers."""
    check(0 < share < 1, f"skip_layers must be above 0 and below 1, got {share}.")
    count = len(layers_of(model)[1])
    if skipped := hierarchy(count, share):
        return skipped
    raise ModelError(f"{type(model).__name__} has too few layers ({count}) to skip {share:.0%} of them.")


def hierarchy(count: int, share: float) -> list[int]:
    """The layers to skip: about `share` of all, ever more of them higher up, never the first or the last."""
    kept = max(2, count - round(share * count))
    run = {max(i, round((count - 1) * (i / (kept - 1)) ** 1.5)) for i in range(kept)}
    return [i for i in range(count) if i not in run]


def without_layers(model: PreTrainedModel, skipped: Sequence[int]) -> PreTrainedModel:
    """A model that runs the other layers of this one. Raises ModelError if the model has no list of layers."""
    path, layers = layers_of(model)
    kept = nn.ModuleList([layer for i, layer in enumerate(layers) if i not in skipped])
    return cast(PreTrainedModel, _replaced(model, path.split("."), kept))


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the model's layers and where it is. Raises ModelError if there is not one such list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ModelError(f"{type(model).__name__} has {len(lists)} lists of {count} layers, so none can be skipped.")
    return lists[0]


def _replaced(module: nn.Module, path: Sequence[str], part: nn.Module) -> nn.Module:
    """The module with another part at the path; all else is shared."""
    if not path:
        return part
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin._modules[path[0]] = _replaced(getattr(module, path[0]), path[1:], part)
    return twin

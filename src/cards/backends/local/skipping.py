"""Layer skipping: an LM without some of its layers, which shares its weights and serves as its draft model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from cards.errors import ModelError, check


def layers_to_skip(model: PreTrainedModel, share: float) -> list[int]:
    """Return the indices of the layers to skip, about this fraction of all.

    Raises SettingError if the fraction is out of range, ModelError if the model has too few layers.
    """
    check(0 < share < 1, f"skip_layers must be above 0 and below 1, got {share}.")
    count = len(layers_of(model)[1])
    if skipped := skipped_layers(count, share):
        return skipped
    raise ModelError(
        f"{type(model).__name__} has too few layers ({count}) to skip {share:.0%} of them. Raise skip_layers or leave it out."
    )


def skipped_layers(count: int, share: float) -> list[int]:
    """Return about a fraction `share` of the layer indices, denser among the later layers, without the first and last."""
    kept_count = max(2, count - round(share * count))
    kept = {max(i, round((count - 1) * (i / (kept_count - 1)) ** 1.5)) for i in range(kept_count)}
    return [i for i in range(count) if i not in kept]


def without_layers(model: PreTrainedModel, skipped: Sequence[int]) -> PreTrainedModel:
    """Return a model that runs the remaining layers and shares their weights.

    Raises ModelError if the list of layers is not found.
    """
    path, layers = layers_of(model)
    kept = nn.ModuleList([layer for i, layer in enumerate(layers) if i not in skipped])
    return cast(PreTrainedModel, _with_submodule(model, path.split("."), kept))


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the path of the model's list of layers, and the list. Raises ModelError unless there is exactly one."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise ModelError(
            f"Skipping layers needs a model with one list of {count} layers, got {len(lists)} in {type(model).__name__}."
        )
    return lists[0]


def _with_submodule(module: nn.Module, path: Sequence[str], submodule: nn.Module) -> nn.Module:
    """Return a copy of the module with another submodule at the path. All other submodules are shared."""
    if not path:
        return submodule
    result = copy.copy(module)
    result._modules = dict(module._modules)
    result._modules[path[0]] = _with_submodule(getattr(module, path[0]), path[1:], submodule)
    return result

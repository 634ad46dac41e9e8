"""Adapters of PEFT: loaded onto their base model, and merged into its weights where rounding allows it."""

from __future__ import annotations

import sys
from collections.abc import Set
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from cards.backends.checkpoint import Checkpoint
from cards.errors import ModelError


def adapter_shapes(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    """Return the shapes of the weights of the checkpoint's adapter, by name. It is empty without an adapter."""
    if checkpoint.adapter is None:
        return {}
    from peft.utils.save_and_load import load_peft_weights

    weights = load_peft_weights(str(checkpoint.adapter.folder), device="cpu")
    return {name: weight.shape for name, weight in weights.items()}


def with_adapter(model: PreTrainedModel, checkpoint: Checkpoint, saved: Set[str]) -> PreTrainedModel:
    """Return the base model with the checkpoint's adapter, whose weights have the names `saved`.

    LoRA is merged into weights in float32 and float64. Merging in other types would round once more than the adapter's own
    forward pass, so there the layers of the adapter stay. Raises ModelError if weights do not fit.
    """
    if checkpoint.adapter is None:
        return model
    from peft import PeftModel, PeftType, get_peft_model_state_dict

    adapted = PeftModel.from_pretrained(model, str(checkpoint.adapter.folder))
    if different := sorted(saved ^ set(get_peft_model_state_dict(adapted))):
        raise ModelError(
            f"The weights of adapter {checkpoint.name!r} do not fit its base model {checkpoint.base.name!r}: "
            f"{', '.join(different[:3])}."
        )
    exact = model.dtype in (torch.float32, torch.float64) and not getattr(model, "is_quantized", False)
    if exact and adapted.peft_config["default"].peft_type == PeftType.LORA:
        return cast(PreTrainedModel, cast(Any, adapted).merge_and_unload())
    return without_wrapper(adapted)


def without_wrapper(model: Any) -> PreTrainedModel:
    """Return the model inside a PeftModel, with the layers of its adapter, or any other model unchanged.

    Raises ModelError if the adapter adds tokens instead of changing layers.
    """
    peft = sys.modules.get("peft")  # without it the model is no PeftModel
    if peft is None or not isinstance(model, peft.PeftModel):
        return cast(PreTrainedModel, model)
    if model.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"The adapter of {model.name_or_path or type(model).__name__!r} ({model.active_peft_config.peft_type.value}) adds "
            "tokens to the prompt, which is not supported. Use an adapter that changes layers, such as LoRA."
        )
    return cast(PreTrainedModel, model.get_base_model())

"""Verification at load time that a model gives the same outputs in cache slots as in a full forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cards.backends.configuration import flops_per_token
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import TorchCache
from cards.backends.local.lean import Output, lean_forward
from cards.engines.slots import Slots
from cards.errors import ModelError, SettingError

ADVICE = "Its attention or state does not use transformers' attention interface. Use another engine for it."
DUMMY_MASK = torch.zeros(1, 1, 1, 1)  # transformers passes a 4-D mask through and does not build one that is not used


def verified_slots(
    model: PreTrainedModel,
    outputs: Sequence[Callable[..., Tensor] | None],
    rows: int,
    context: int,
    reference: Callable[[Tensor], Tensor],
) -> Slots:
    """Return slots that use the first of `outputs(input_ids, position_ids, last)` that agrees with `reference(input_ids)`.

    Raises ModelError if none agrees, because the model then has state or attention that slots do not support.
    Raises SettingError if the slots do not fit into memory.
    """
    config = model.config.get_text_config()
    ids = torch.randint(0, config.vocab_size, (1, 21), generator=torch.Generator().manual_seed(0)).to(model.device)
    ids = ids[:, :context]
    try:
        with torch.inference_mode():
            expected = reference(ids).float()
            for output in filter(None, outputs):
                cache = TorchCache(output, rows, context, model.device)
                slots = Slots(cache)
                error = _error(slots, ids[0].tolist(), expected)
                if error < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1):
                    cache.flops = flops_per_token(model)
                    return slots
    except torch.OutOfMemoryError as problem:
        raise SettingError(
            f"{rows} slots of {context} tokens do not fit into the memory of {model.device} next to {type(model).__name__}. "
            f"Lower slots or context. ({problem})"
        ) from problem
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise ModelError(f"{type(model).__name__} cannot be decoded in slots ({problem}). {ADVICE}") from problem
    raise ModelError(
        f"{type(model).__name__} cannot be decoded in slots (its outputs differ from a full pass by {error:.2g}). {ADVICE}"
    )


def _error(slots: Slots, row: list[int], expected: Tensor) -> float:
    """Return the relative error of the output after a row that is read in three parts."""
    slot, _ = slots.acquire(row, 0) or (0, 0)
    for part in filter(None, (row[:5], row[5:6], row[6:])):
        output = cast(Tensor, slots.read([(slot, part)])).float()
    slots.release(slot)
    return ((output - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


def lm_outputs(model: PreTrainedModel, context: int) -> tuple[Output | None, Output]:
    """Return functions for the next-token logits [rows, vocabulary] at the packed indices `last`, the faster one first."""
    has_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    mask, attention = DUMMY_MASK.to(model.device), SlotAttention(model)

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        keep = {"logits_to_keep": last} if has_keep else {}
        with attention:
            out = model(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False, **keep)
        return cast(Tensor, out.logits[0] if has_keep else out.logits[0, last])

    return lean_forward(model, getattr(model, "lm_head", None), context), output

"""Facts from a model's configuration: context length, end tokens and cost per token."""

from __future__ import annotations

import sys

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.errors import SettingError, UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_dtype(dtype: str, device: torch.device, stored: torch.dtype | None = None) -> torch.dtype:
    """Return the torch dtype for a name. Raises UnknownNameError.

    `auto` means bfloat16 on CUDA. On CPUs with bfloat16 instructions it means bfloat16 for weights that are `stored` in half
    precision. Otherwise it means float32.
    """
    if dtype == "auto":
        native = device.type == "cpu" and stored in (torch.bfloat16, torch.float16) and has_bfloat16()
        return torch.bfloat16 if device.type == "cuda" or native else torch.float32
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 matrices with special instructions."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.10
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the token ids that end a response: those of the generation config, otherwise those of the tokenizer."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


def vocab_size(model: PreTrainedModel) -> int:
    """Return the number of token ids that have an embedding. Models that hash characters have no limit."""
    config = model.config.get_text_config()
    count = getattr(_embeddings(model), "num_embeddings", None) or getattr(config, "vocab_size", None)
    return int(count or sys.maxunicode + 1)


def _embeddings(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer that embeds token ids, or None if the model has several or none."""
    try:
        layer = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return layer if isinstance(layer, nn.Module) else None


def length_limit(model: PreTrainedModel) -> int:
    """Return the maximum number of tokens that the model supports, or 2048 if it is not known."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or 2048
    limit = limit if limit > 0 else 2048  # XLNet says -1 for no limit
    for name, module in model.named_modules():  # RoBERTa and its relatives count positions from the padding id + 1
        if name.endswith("position_embeddings") and (padding := getattr(module, "padding_idx", None)) is not None:
            limit = min(limit, limit - padding - 1)
            break
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # beyond this length, frequencies depend on the batch's longest row
        limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return int(limit)


def context_length(model: PreTrainedModel, requested: int | None) -> int:
    """Return the maximum number of tokens of a sequence: `requested`, or the model's limit up to 2048 if it is None.

    Raises SettingError if the model does not support the requested length.
    """
    limit = length_limit(model)
    if requested is not None and not 2 <= requested <= limit:
        raise SettingError(f"context must be between 2 and {limit} for this model, got {requested}.")
    return requested or min(limit, 2048)


def flops_per_token(model: PreTrainedModel) -> float:
    """Return 2 x the number of parameters, without input embeddings that are only looked up.

    Attention over the context is not counted.
    """
    embeddings = getattr(_embeddings(model), "weight", None)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is embeddings
    looked_up = 0 if tied or embeddings is None else embeddings.numel()
    return 2.0 * (sum(p.numel() for p in model.parameters()) - looked_up)

"""A model's configuration: its context, the tokens that end a response, its cost; and models without their weights."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.files import load_tokenizer, unknown_model
from cards.errors import ModelError, SettingError, UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UnknownNameError("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def skeleton(auto: Any, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model without its weights, for engines that load these themselves, and its tokenizer.

    Raises UnknownNameError if there is no such model, ModelError if transformers does not know its kind.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = auto.from_config(config)
        tokenizer = load_tokenizer(source)
    except OSError as error:
        raise unknown_model(source) from error
    except ValueError as error:
        raise ModelError(f"Model {source!r} cannot be loaded: {error}") from error
    with suppress(OSError):  # many models have no such file
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model.eval(), tokenizer


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end an answer: the generation config's, else the tokenizer's."""
    ids = getattr(model.generation_config, "eos_token_id", None)
    ids = tokenizer.eos_token_id if ids is None else ids
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)


def context_of(model: PreTrainedModel, wanted: int | None) -> int:
    """Tokens a sequence may have: what is wanted, within what the model can do. Default: at most 2048."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or 2048
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):  # their frequencies depend on the longest row of a batch
        most = min(most, rope.get("original_max_position_embeddings") or most)
    if wanted is not None and not 2 <= wanted <= most:
        raise SettingError(f"context must lie in [2, {most}] for this model, not {wanted}.")
    return wanted or min(most, 2048)


def flops_per_token(model: PreTrainedModel) -> float:
    """2 x parameters, word vectors that are only looked up left out (attention over the context is not counted)."""
    looked_up = cast(Tensor, model.get_input_embeddings().weight)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is looked_up
    return 2.0 * (sum(p.numel() for p in model.parameters()) - (0 if tied else looked_up.numel()))

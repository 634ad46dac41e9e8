"""Shapes, attention, optimizers and storage of the causal models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel
from transformers import (
    AttentionInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bpe import save_tokenizer


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    inner: int


LM = Shape(hidden=256, layers=6, heads=4, inner=768)
DRAFT = Shape(hidden=128, layers=5, heads=4, inner=448)
EMA = 0.99


def causal_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Compute attention with plain matrix products; the backward pass of the CPU kernel is several times slower at 256 tokens.

    Rows are padded on the right and padded positions have no loss, so the causal mask is sufficient.
    """
    length = query.shape[2]
    scores = torch.matmul(query * kwargs["scaling"], key.transpose(2, 3)).float()
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    weights = torch.softmax(scores.masked_fill(~seen, -1e9), dim=-1).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain_causal", causal_attention)


def build(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # Residual branches start at zero, so that depth does not slow down the first steps.
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


class Optimisers:
    """Muon for the hidden matrices and AdamW for embeddings, norms and heads, behind one interface."""

    def __init__(self, model: torch.nn.Module, muon_lr: float, adam_lr: float, decay: float) -> None:
        inner = {name for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name}
        hidden = [weight for name, weight in model.named_parameters() if name in inner]
        rest = [weight for name, weight in model.named_parameters() if name not in inner]
        self.weights = hidden + rest
        self.peaks = (muon_lr, adam_lr)
        self.both = (
            torch.optim.Muon(hidden, lr=muon_lr, weight_decay=decay, momentum=0.95),
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def step(self, factor: float) -> None:
        """Take one step at `factor` times the peak learning rates."""
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimiser, peak in zip(self.both, self.peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[int, Any]:
        return {place: optimiser.state_dict() for place, optimiser in enumerate(self.both)}

    def load_state_dict(self, states: dict[int, Any]) -> None:
        for place, optimiser in enumerate(self.both):
            optimiser.load_state_dict(states[place])


def averaged(model: torch.nn.Module) -> AveragedModel:
    """A moving average of the weights with a window that grows with the number of steps."""
    return AveragedModel(model, avg_fn=lambda mean, weight, count: mean.lerp(weight, 1 - min(EMA, count / (count + 10))))


def trapezoid(step: int, total: int, warm: int, cool: float) -> float:
    """Warm up, hold, then decay to zero over the last `cool` of the run."""
    start = total * (1 - cool)
    return min((step + 1) / warm, 1.0, max((total - step) / (total - start), 0.0))


def cosine(step: int, total: int, warm: int) -> float:
    """Warm up, then decay along a quarter of a cosine wave to zero."""
    return min((step + 1) / warm, math.cos(math.pi / 2 * step / total))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile one graph per row width, which is faster than a graph with dynamic shapes."""
    return torch.compile(function, dynamic=False)


def store(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Save a folder for AutoModel and AutoTokenizer, from a copy in the storage type."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    torch.nn.Module.to(copy, dtype)
    if copy.can_generate():
        copy.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    copy.save_pretrained(folder)
    # safetensors makes the weights readable by their owner only.
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)

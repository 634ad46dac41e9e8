"""A faster forward pass for Llama-like models: the same weights and arithmetic in fewer operations.

In small models most of the time of a short step is Python overhead and tiny tensors. transformers' modules take 50
operations per layer, this forward pass takes 25. Its outputs are verified against the model at load time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn, rms_norm
from torch.nn.functional import embedding, linear, silu
from transformers import PreTrainedModel

from cards.backends.local.attention import Step, current_step

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # others may have factors that the verification cannot detect
COPIED = 2**21  # bytes of a weight on a CPU, up to which a copy in a faster order is made
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
Output = Callable[[Tensor, Tensor, Tensor], Tensor]


def lean_forward(model: PreTrainedModel, head: nn.Module | None, length: int) -> Output | None:
    """Return output(input_ids [1, n], position_ids [1, n], last [rows]), which applies `head` to the last hidden states.

    length: number of positions to support.
    Returns None for other architectures, and for layers changed by adapters, quantisation or offloading.
    """
    base: Any = model.base_model
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    plain = all(
        type(m) is nn.Linear and type(m.weight.data) is Tensor and not hasattr(m, "_hf_hook")
        for m in base.modules()
        if hasattr(m, "in_features")
    )
    if (
        config.model_type not in MODEL_TYPES
        or config.hidden_act != "silu"
        or rope.get("rope_type", "default") not in FIXED_ROTATIONS
        or not plain
        or not isinstance(head, nn.Linear)
        or head.weight.dtype == torch.float64  # transformers' norms then round to float32
    ):
        return None
    size, epsilon, width = (config.hidden_size,), config.rms_norm_eps, base.layers[0].self_attn.head_dim
    positions = torch.arange(length, device=model.device).unsqueeze(0)
    cosine, sine = (part[0].unsqueeze(1) for part in base.rotary_emb(head.weight.new_zeros(1), positions))
    sine = sine.clone()
    sine[..., : width // 2].neg_()  # a roll by half the width is then the rotation

    def attention(layer: LeanLayer, x: Tensor, cosine: Tensor, sine: Tensor, step: Step) -> Tensor:
        qk, v = (
            linear(x, *layer.qkv).view(-1, layer.heads + layer.values, width).split_with_sizes([layer.heads, layer.values], 1)
        )
        if layer.norms is not None:
            qk = rms_norm(qk, (width,), None, epsilon) * layer.norms
        qk = (qk * cosine).addcmul_(qk.roll(width // 2, -1), sine)
        q, k = qk.split_with_sizes([layer.heads - layer.values, layer.values], 1)
        return step.attend(layer.index, q, k, v, layer.scaling, layer.window).flatten(1)

    layers = [LeanLayer(layer, width) for layer in base.layers]

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        step = cast(Step, current_step())
        hidden = embedding(input_ids[0], base.embed_tokens.weight)
        rotation = cosine[position_ids[0]], sine[position_ids[0]]
        for layer in layers:
            x = attention(layer, rms_norm(hidden, size, layer.norm, epsilon), *rotation, step)
            hidden = add_linear(hidden, x, layer.out)
            gate, up = linear(rms_norm(hidden, size, layer.post_norm, epsilon), *layer.gate_up).chunk(2, -1)
            hidden = add_linear(hidden, silu(gate).mul_(up), layer.down)
        return cast(Tensor, head(rms_norm(hidden[last], size, base.norm.weight, epsilon)))

    return output


class LeanLayer:
    """The weights of a layer in the form that `lean_forward` uses."""

    def __init__(self, layer: Any, width: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.scaling = attention.layer_idx, attention.scaling
        self.qkv = fuse(attention, [attention.q_proj, attention.k_proj, attention.v_proj])
        self.values, queries = attention.v_proj.out_features // width, attention.q_proj.out_features // width
        self.heads = queries + self.values  # of queries and keys
        self.window = getattr(attention if hasattr(attention, "sliding_window") else attention.config, "sliding_window", None)
        self.norms: Tensor | None = None  # of each query and key head
        if hasattr(attention, "q_norm"):
            self.norms = torch.stack([attention.q_norm.weight.data] * queries + [attention.k_norm.weight.data] * self.values)
        self.gate_up = fuse(mlp, [mlp.gate_proj, mlp.up_proj])
        self.out, self.down = ((in_fast_order(part.weight).t(), part.bias) for part in (attention.o_proj, mlp.down_proj))
        self.norm, self.post_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight


def fuse(owner: nn.Module, parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Return the weights and biases of several linear maps of the same input as one map.

    The parts become views of it, unless it is small: then it is a copy in a faster order.
    """
    fused: list[Tensor] | None = getattr(owner, "_cards_joined", None)
    if fused is None:
        fused = [torch.cat([part.weight.data for part in parts])]
        if parts[0].bias is not None:
            fused.append(torch.cat([part.bias.data for part in parts]))
        if is_small(fused[0]):
            fused[0] = in_fast_order(fused[0])
        else:
            for tensor, name in zip(fused, ("weight", "bias"), strict=False):
                for part, view in zip(parts, torch.split(tensor, [part.out_features for part in parts]), strict=True):
                    getattr(part, name).data = view
            owner._cards_joined = fused  # type: ignore[assignment]
    return fused[0], fused[1] if len(fused) > 1 else None


def is_small(weight: Tensor) -> bool:
    """Return whether a copy of the weight is cheap, and faster in another order."""
    return weight.device.type == "cpu" and weight.nbytes <= COPIED


def in_fast_order(weight: Tensor) -> Tensor:
    """Return the weight, as a copy with its inputs outermost in memory if it is small: products with few rows are faster so."""
    return weight.data.t().contiguous().t() if is_small(weight) else weight


def add_linear(hidden: Tensor, x: Tensor, part: tuple[Tensor, Tensor | None]) -> Tensor:
    """Return hidden + linear(x)."""
    weight, bias = part
    return torch.addmm(hidden if bias is None else hidden + bias, x, weight)

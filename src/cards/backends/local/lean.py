"""A shorter forward pass for models of the Llama shape: the same weights and arithmetic, fewer and cheaper calls.

In small models most of a step of one or a few rows is Python and tensors too small to matter. transformers' own modules
take 50 operations a layer, this takes 25. Loading proves it against the model itself, as it proves the slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn, rms_norm
from torch.nn.functional import embedding, linear, silu
from transformers import PreTrainedModel

from cards.backends.local.attention import PackedStep, under_way

KINDS = ("llama", "mistral", "qwen2", "qwen3")  # configurations beyond these may hide factors that a proof does not reach
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
Output = Callable[[Tensor, Tensor, Tensor], Tensor]


def lean(model: PreTrainedModel, head: nn.Module | None, length: int) -> Output | None:
    """output(input_ids [1, n], position_ids [1, n], last [rows]) -> what `head` makes of the last hidden states [rows, ...].

    None if the model is not of this shape, or if others (adapters, quantisation, offloading) have a hand in its layers.
    `length`: positions to be ready for.
    """
    base: Any = model.base_model
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    plain = all(type(m) is nn.Linear and not hasattr(m, "_hf_hook") for m in base.modules() if hasattr(m, "in_features"))
    if (
        config.model_type not in KINDS
        or config.hidden_act != "silu"
        or rope.get("rope_type", "default") not in FIXED_ROTATIONS
        or not plain
        or not isinstance(head, nn.Linear)
        or head.weight.dtype == torch.float64  # transformers' own norms then round to float32
    ):
        return None
    size, epsilon, width = (config.hidden_size,), config.rms_norm_eps, base.layers[0].self_attn.head_dim
    places = torch.arange(length, device=model.device).unsqueeze(0)
    cosine, sine = (part[0].unsqueeze(1) for part in base.rotary_emb(head.weight.new_zeros(1), places))
    sine = sine.clone()
    sine[..., : width // 2].neg_()  # so that a roll by half the width rotates

    def mixed(layer: Layer, x: Tensor, cosine: Tensor, sine: Tensor, step: PackedStep) -> Tensor:
        whole = linear(x, *layer.qkv).view(len(x), -1, width)
        qk, v = whole[:, : -layer.values], whole[:, -layer.values :]
        if layer.norms is not None:
            qk = rms_norm(qk, (width,), None, epsilon) * layer.norms
        qk = (qk * cosine).addcmul_(qk.roll(width // 2, -1), sine)
        q, k = qk[:, : -layer.values], qk[:, -layer.values :]
        return step.attend(layer.index, q, k, v, layer.scaling, layer.window).flatten(1)

    layers = [Layer(layer, width) for layer in base.layers]

    def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        step = cast(PackedStep, under_way())
        hidden = embedding(input_ids[0], base.embed_tokens.weight)
        at = cosine[position_ids[0]], sine[position_ids[0]]
        for layer in layers:
            hidden = added(hidden, mixed(layer, rms_norm(hidden, size, layer.norm, epsilon), *at, step), layer.out)
            gate, up = linear(rms_norm(hidden, size, layer.post_norm, epsilon), *layer.gate_up).chunk(2, -1)
            hidden = added(hidden, silu(gate).mul_(up), layer.down)
        return cast(Tensor, head(rms_norm(hidden[last], size, base.norm.weight, epsilon)))

    return output


class Layer:
    """The weights of a layer as `lean` uses them."""

    def __init__(self, layer: Any, width: int) -> None:
        own, mlp = layer.self_attn, layer.mlp
        self.index, self.scaling = own.layer_idx, own.scaling
        self.qkv = joined(own, [own.q_proj, own.k_proj, own.v_proj])
        self.values, queries = own.v_proj.out_features // width, own.q_proj.out_features // width
        self.window = getattr(own if hasattr(own, "sliding_window") else own.config, "sliding_window", None)
        self.norms: Tensor | None = None  # of each query and key head
        if hasattr(own, "q_norm"):
            self.norms = torch.stack([own.q_norm.weight.data] * queries + [own.k_norm.weight.data] * self.values)
        self.gate_up = joined(mlp, [mlp.gate_proj, mlp.up_proj])
        self.out, self.down = ((part.weight.t(), part.bias) for part in (own.o_proj, mlp.down_proj))
        self.norm, self.post_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight


def joined(owner: nn.Module, parts: list[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """The weights and biases of linear maps of one input as those of one map, of which theirs become views."""
    if not hasattr(owner, "_cards_joined"):
        tensors = [torch.cat([part.weight.data for part in parts])]
        if parts[0].bias is not None:
            tensors.append(torch.cat([part.bias.data for part in parts]))
        for whole, name in zip(tensors, ("weight", "bias"), strict=False):
            for part, view in zip(parts, torch.split(whole, [part.out_features for part in parts]), strict=True):
                getattr(part, name).data = view
        owner._cards_joined = (*tensors, None)[:2]  # type: ignore[assignment]
    return cast("tuple[Tensor, Tensor | None]", owner._cards_joined)


def added(hidden: Tensor, x: Tensor, part: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = part
    return torch.addmm(hidden if bias is None else hidden + bias, x, weight)

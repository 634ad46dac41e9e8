"""The attention implementation `cards_slots` of transformers, for packed forward passes over cache slots.

Linear layers process the new tokens of all rows side by side, without padding ([1, tokens, hidden]). Only attention
separates the rows. Each layer writes the new keys and values to (slot, position) of a preallocated cache. Then every row
attends to its slot, up to its position.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

NAME = "cards_slots"
_local = threading.local()
_own: dict[int, str] = {}  # the attention implementation of each configuration (by id) that `SlotAttention` has replaced


class SlotAttention:
    """A context manager in which a model's layers use slot attention. At all other times the model keeps its own.

    While it is active, forward passes of other threads are passed on to the model's own implementation.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        configs = [model.config.get_text_config(), *(getattr(module, "config", None) for module in model.modules())]
        self.configs = list({id(c): c for c in configs if isinstance(c, PreTrainedConfig)}.values())

    def __enter__(self) -> None:
        _own.update({id(config): config._attn_implementation or "eager" for config in self.configs})
        for config in self.configs:
            config._attn_implementation_internal = NAME

    def __exit__(self, *error: object) -> None:
        for config in self.configs:
            config._attn_implementation_internal = _own.pop(id(config))


Store = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # see PackedStep


@dataclass(slots=True)
class Group:
    """Rows that attend in one call. They have similar numbers of new tokens T, so that padding to the longest costs little.

    rows: the slots of the rows, as a slice (a view of the cache) or an index.
    count: number of rows.
    length: number of keys to attend to.
    unmasked: whether each row has one new token and attends to all keys.
    queries: the packed tokens of the rows, as a slice, or as an index [count, T] whose padding repeats any of them.
    """

    rows: slice | Tensor
    count: int
    length: int
    unmasked: bool
    queries: slice | Tensor
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def select(self, packed: Tensor) -> Tensor:
        """Select this group's part of a packed tensor, [tokens, ...] -> [count, T, ...]."""
        selected = packed[self.queries]
        return selected.view(self.count, -1, *packed.shape[1:]) if isinstance(self.queries, slice) else selected

    def mask(self, position: Tensor, window: int | None, heads_per_key: int, dtype: torch.dtype) -> Tensor | None:
        """Return the additive causal mask [count, 1, heads_per_key * T, length], or None if every key is visible."""
        if self.unmasked and (window is None or self.length <= window):
            return None
        if (mask := self.masks.get((window, heads_per_key))) is None:
            key = torch.arange(self.length, device=position.device)
            query = self.select(position).unsqueeze(-1)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            mask = self.masks[window, heads_per_key] = mask.unsqueeze(1).repeat(1, 1, heads_per_key, 1)
        return mask


@dataclass(slots=True)
class PackedStep:
    """One packed forward pass: the cache entries of its tokens, and the groups in which its rows attend.

    place: [tokens], index of each packed token in the flattened cache.
    position: [tokens], position of each packed token in its row.
    unpack: [tokens], index of each packed token's output in the concatenated outputs of the groups; None if the orders agree.
    store(layer, place, key, value): write the keys and values [tokens, heads, dim] of a layer to these cache entries, and
    return all of its keys and values, [slots, length, heads, dim] each.
    """

    place: Tensor
    position: Tensor
    groups: Sequence[Group]
    unpack: Tensor | None
    store: Store

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Store keys and values [tokens, key heads, dim], and return the output for queries [tokens, heads, dim]."""
        keys, values = self.store(layer, self.place, key, value)
        heads, key_heads, dim = query.shape[1], key.shape[1], query.shape[2]
        ratio = heads // key_heads  # query heads that share a key head are folded into the query length
        outputs = []
        for group in self.groups:
            k, v = (cache[group.rows, : group.length].transpose(1, 2) for cache in (keys, values))
            q = group.select(query)
            single = q.shape[1] == 1  # then no axes change places
            q = (q if single else q.transpose(1, 2)).reshape(group.count, key_heads, -1, dim)
            mask = group.mask(self.position, window, ratio, query.dtype)
            if softcap is None:
                out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
            else:
                logits = (q @ k.transpose(-1, -2)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
                logits = torch.tanh(logits / softcap) * softcap
                out = (logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
            if single:
                outputs.append(out.reshape(group.count, heads, -1))
            else:
                outputs.append(out.reshape(group.count, heads, -1, out.shape[-1]).transpose(1, 2).flatten(0, 1))
        packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return packed if self.unpack is None else packed[self.unpack]


class Step(Protocol):
    """One packed forward pass, in which `attend` computes the attention of each layer (see `PackedStep`)."""

    position: Tensor

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor: ...


@contextmanager
def use_step(step: Step) -> Iterator[None]:
    """Make `step` the current step of this thread."""
    _local.step = step
    try:
        yield
    finally:
        del _local.step


def current_step() -> Step | None:
    """Return the current step of this thread, if there is one."""
    return getattr(_local, "step", None)


class Probe(Protocol):
    """An observer of the masks and attention calls of a forward pass."""

    def mask(self, **arguments: Any) -> Tensor: ...

    def attend(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> Tensor: ...


@contextmanager
def use_probe(probe: Probe) -> Iterator[None]:
    """Let `probe` compute the masks and the attention of this thread."""
    _local.probe = probe
    try:
        yield
    finally:
        del _local.probe


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Implement transformers' attention interface: [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    if (step := current_step()) is not None:
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
        scaling, window, softcap = (options.get(name) for name in ("scaling", "sliding_window", "softcap"))
        output = step.attend(cast(int, module.layer_idx), q, k, v, scaling, window, softcap)
        return output.unsqueeze(0).contiguous(), None  # some models take a view of it
    if (probe := getattr(_local, "probe", None)) is not None:
        return probe.attend(module, query, key, value, attention_mask, **options), None
    eager = sys.modules[type(module).__module__].__dict__.get("eager_attention_forward")
    own = AttentionInterface().get_interface(
        _own.get(id(getattr(module, "config", None)), "sdpa"), cast("Callable[..., Any]", eager)
    )
    return cast("tuple[Tensor, Tensor | None]", own(module, query, key, value, attention_mask, **options))


def make_mask(*, config: PreTrainedConfig, **arguments: Any) -> Tensor | None:
    """Implement transformers' mask interface."""
    if (probe := getattr(_local, "probe", None)) is not None:
        return cast(Tensor, probe.mask(config=config, **arguments))
    own = AttentionMaskInterface()[_own.get(id(config), "sdpa")]
    return cast("Tensor | None", own(config=config, **arguments))


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, make_mask)

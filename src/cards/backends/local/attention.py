"""Attention over slots: one packed forward pass in which every row has its own length and its own place in the cache.

Registered with transformers as the attention implementation `cards_slots`. Linear layers see the new tokens of all rows
side by side, without padding ([1, tokens, hidden]); only here are rows told apart. Each layer writes the new keys and
values to (slot, position) of a preallocated cache, then every row attends to its own slot up to its own position.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "cards_slots"
_running = threading.local()


@dataclass(slots=True)
class Group:
    """Rows that attend in one call: they read about as many new tokens each, so that padding to the longest costs little.

    rows: their slots, as a slice (a view of the cache) or an index; count: how many; length: keys to look at; alike: whether
    all rows read one token and look at all keys; queries: their packed tokens, side by side as a slice, or an index
    [count, T], padded with any of them.
    """

    rows: slice | Tensor
    count: int
    length: int
    alike: bool
    queries: slice | Tensor
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def of(self, packed: Tensor) -> Tensor:
        """The group's share of what each packed token has, [tokens, ...] -> [count, T, ...]."""
        own = packed[self.queries]
        return own.view(self.count, -1, *packed.shape[1:]) if isinstance(self.queries, slice) else own

    def mask(self, position: Tensor, window: int | None, heads_per_key: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [count, 1, heads_per_key * T, length]: keys up to each token's position, within the window."""
        if self.alike and (window is None or self.length <= window):
            return None
        if (mask := self.masks.get((window, heads_per_key))) is None:
            key = torch.arange(self.length, device=position.device)
            query = self.of(position).unsqueeze(-1)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            mask = self.masks[window, heads_per_key] = mask.unsqueeze(1).repeat(1, 1, heads_per_key, 1)
        return mask


@dataclass(slots=True)
class PackedStep:
    """One forward pass: where its packed tokens go, and how its rows attend.

    place, position: [tokens], of each packed token in the flattened cache and in its row; unpack: [tokens], where each
    packed token's output lies in the groups' outputs laid end to end, or None if they already lie in packed order;
    cache(layer, key, value): the layer's whole cache, a pair of [slots, length, heads, dim], made on first use for keys
    and values like these.
    """

    place: Tensor
    position: Tensor
    groups: Sequence[Group]
    unpack: Tensor | None
    cache: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]

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
        """[tokens, heads, dim] each, fewer heads of keys and values -> [tokens, heads, dim]."""
        keys, values = self.cache(layer, key, value)
        keys.flatten(0, 1).index_copy_(0, self.place, key)
        values.flatten(0, 1).index_copy_(0, self.place, value)
        heads, key_heads = query.shape[1], key.shape[1]
        ratio = heads // key_heads  # query heads that share a key head are folded into the query length
        outputs = []
        for group in self.groups:
            k, v = (cache[group.rows, : group.length].transpose(1, 2) for cache in (keys, values))
            q = group.of(query).transpose(1, 2).reshape(group.count, key_heads, -1, query.shape[2])
            mask = group.mask(self.position, window, ratio, query.dtype)
            if softcap is None:
                out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
            else:
                logits = (q @ k.transpose(-1, -2)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
                logits = torch.tanh(logits / softcap) * softcap
                out = (logits if mask is None else logits + mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
            outputs.append(out.reshape(group.count, heads, -1, out.shape[-1]).transpose(1, 2).flatten(0, 1))
        packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return packed if self.unpack is None else packed[self.unpack]


@contextmanager
def running(step: PackedStep) -> Iterator[None]:
    """Make `step` the one that attention in this thread serves."""
    _running.step = step
    try:
        yield
    finally:
        del _running.step


def under_way() -> PackedStep | None:
    """The step that attention in this thread serves."""
    return getattr(_running, "step", None)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention contract: [1, heads, tokens, dim] -> [1, tokens, heads, dim]."""
    if (step := under_way()) is None:  # somebody else runs this model
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return step.attend(cast(int, module.layer_idx), q, k, v, scaling, sliding_window, softcap).unsqueeze(0), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for runs that are not ours

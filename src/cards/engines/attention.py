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
    """Rows that read about as many new tokens each, so that padding their queries to the longest costs little.

    rows: slots, as a slice (a view of the cache) or an index [rows]; length: keys to look at;
    queries: index [rows, T] of packed tokens, padded with any token; position: [rows, T] of those tokens, -1 if padding.
    """

    rows: slice | Tensor
    length: int
    queries: Tensor
    position: Tensor
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, heads_per_key: int, dtype: torch.dtype) -> Tensor:
        """Additive mask [rows, 1, heads_per_key * T, length]: keys up to the query's position, within the window."""
        if (mask := self.masks.get((window, heads_per_key))) is None:
            key = torch.arange(self.length, device=self.position.device)
            query = self.position.clamp(min=0).unsqueeze(-1)
            seen = key <= query
            if window is not None:
                seen &= key > query - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            mask = self.masks[window, heads_per_key] = mask.unsqueeze(1).repeat(1, 1, heads_per_key, 1)
        return mask


@dataclass(slots=True)
class Step:
    """One forward pass: where its packed tokens go, and how its rows attend.

    slot, position: [tokens]; unpack: [tokens], where each packed token's output lies in the groups' outputs laid end to
    end, or None if they already lie in packed order; cache(layer, key, value): the layer's whole cache, a pair of
    [slots, heads, length, dim], made on first use for keys and values like these.
    """

    slot: Tensor
    position: Tensor
    groups: Sequence[Group]
    unpack: Tensor | None
    cache: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@contextmanager
def running(step: Step) -> Iterator[None]:
    """Make `step` the one that attention in this thread serves."""
    _running.step = step
    try:
        yield
    finally:
        del _running.step


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
    step: Step | None = getattr(_running, "step", None)
    if step is None:  # somebody else runs this model
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    keys, values = step.cache(cast(int, module.layer_idx), key, value)
    keys[step.slot, :, step.position] = key[0].transpose(0, 1)
    values[step.slot, :, step.position] = value[0].transpose(0, 1)
    heads, key_heads = query.shape[1], key.shape[1]
    ratio = heads // key_heads  # query heads that share a key head are folded into the query length
    outputs = []
    for group in step.groups:
        rows, length = group.queries.shape
        q = query[0, :, group.queries].transpose(0, 1).reshape(rows, key_heads, ratio * length, -1)
        k, v = keys[group.rows, :, : group.length], values[group.rows, :, : group.length]
        mask = group.mask(sliding_window, ratio, query.dtype)
        if softcap is None:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        else:
            logits = (q @ k.transpose(-1, -2)) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
            out = (torch.tanh(logits / softcap) * softcap + mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
        out = out.reshape(rows, heads, length, -1).transpose(1, 2).reshape(rows * length, heads, -1)
        outputs.append(out)
    packed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (packed if step.unpack is None else packed[step.unpack]).unsqueeze(0), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for runs that are not ours

"""Packed forward passes with FlashAttention's paged cache: one call for all rows, without padding, masks or copies.

A cache slot is one page. The kernel reads the keys of each row up to its own end, so rows of any lengths share a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cards.backends.local.attention import Store
from cards.errors import ModelError

PAGE = 256  # the number of keys in a page must be a multiple of this
DTYPES = (torch.float16, torch.bfloat16)  # of the kernels


def has_pages(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device has the kernels for this type."""
    return device.type == "cuda" and dtype in DTYPES


@dataclass(slots=True)
class PagedStep:
    """One packed forward pass (see `PackedStep`, which has the same `place`, `position` and `store`).

    table: [rows, 1], slot of each row. ends: [rows], number of keys of each row. token_starts, key_starts: [rows + 1],
    cumulative numbers of new tokens and of keys. These four have type int32.
    most_tokens, most_keys: bounds on the new tokens and the keys of a row.
    """

    place: Tensor
    position: Tensor
    table: Tensor
    ends: Tensor
    token_starts: Tensor
    key_starts: Tensor
    most_tokens: int
    most_keys: int
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
        from torch.nn.attention.varlen import varlen_attn  # newer than the oldest torch that this package supports

        if softcap is not None:
            raise ModelError("its attention has a cap, which paged attention does not support")
        keys, values = self.store(layer, self.place, key, value)
        output = varlen_attn(
            query.contiguous(),
            keys,
            values,
            self.token_starts,
            self.key_starts,
            self.most_tokens,
            self.most_keys,
            scale=scaling,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=self.ends,
            block_table=self.table,
        )
        return cast(Tensor, output)

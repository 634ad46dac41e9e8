"""Packing of rows into one forward pass: arrays computed on the host, and brought to the device in one transfer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cards.backends.local.attention import Group, PackedStep, Store
from cards.backends.local.paged import PagedStep
from cards.backends.local.transfer import to_device
from cards.engines.slots import Read

SPREAD = 2  # a view of the cache with idle rows is cheaper than a copy of the rows up to this ratio of slots to rows

Index = NDArray[np.int64]


class Packed:
    """The new tokens of some rows side by side.

    slots, counts, keys: slot, number of new tokens and number of keys of each row. ends: packed index after its last token.
    ids, position, place: of each token; `place` is its index in a cache with `room` positions for each slot.
    last: packed indices of the last `outputs` tokens of each row.
    """

    def __init__(self, rows: Sequence[Read], outputs: Sequence[int], room: int) -> None:
        self.slots = [slot for slot, _, _ in rows]
        self.counts = [len(new) for _, _, new in rows]
        self.keys = [start + len(new) for _, start, new in rows]
        self.ends = list(accumulate(self.counts))
        self.ids = np.array([token for _, _, new in rows for token in new], np.int64)
        self.position = np.array([i for _, start, new in rows for i in range(start, start + len(new))], np.int64)
        self.place = np.repeat(np.array(self.slots) * room, self.counts) + self.position
        self.last = np.array([i for end, n in zip(self.ends, outputs, strict=True) for i in range(end - n, end)], np.int64)


def pack_paged(packed: Packed, device: torch.device, store: Store) -> tuple[PagedStep, Tensor, Tensor]:
    """Return the step for paged attention, the packed token ids [tokens], and the indices `last` [outputs]."""
    per_row = [packed.slots, packed.keys, [0, *packed.ends], [0, *accumulate(packed.keys)]]
    arrays = [packed.place, packed.position, packed.ids, packed.last, *(np.array(part, np.int64) for part in per_row)]
    place, position, ids, last, *others = to_device(arrays, device)
    slots, keys, token_starts, key_starts = (part.int() for part in others)
    most = max(packed.counts), max(packed.keys)
    return PagedStep(place, position, slots.unsqueeze(1), keys, token_starts, key_starts, *most, store), ids, last


def pack_groups(
    packed: Packed, device: torch.device, store: Store, *, length: int, key_multiple: int, max_distance: int
) -> tuple[PackedStep, Tensor, Tensor]:
    """Return the step for attention in groups, the packed token ids [tokens], and the indices `last` [outputs].

    length: positions of a slot. key_multiple: the number of keys of a group is rounded up to it. max_distance: in slots,
    between neighbouring rows of a group.
    """
    slots, counts, keys = packed.slots, packed.counts, packed.keys
    shapes: list[tuple[slice | Index, int, int, bool, slice | Index]] = []  # of Group
    orders = []
    for members in _groups(slots, counts, max_distance):
        first, height = slots[members[0]], slots[members[-1]] - slots[members[0]] + 1
        if view := height <= SPREAD * len(members):
            places = [slots[i] - first for i in members]
        else:
            places, height = list(range(len(members))), len(members)
        width, longest = max(counts[i] for i in members), max(keys[i] for i in members)
        limit = min(-(-longest // key_multiple) * key_multiple, length)
        if width == 1 and members[-1] - members[0] + 1 == len(members) == height:  # most decoding steps
            tokens = order = np.arange(packed.ends[members[0]] - 1, packed.ends[members[-1]])
            adjacent = True
        else:
            tokens = np.full((height, width), -1)
            for row, i in zip(places, members, strict=True):
                tokens[row, : counts[i]] = np.arange(packed.ends[i] - counts[i], packed.ends[i])
            order = tokens.ravel()
            adjacent = bool((np.diff(order) == 1).all())
        shapes.append(
            (
                slice(first, first + height) if view else np.array([slots[i] for i in members]),
                height,
                limit,
                width == 1 and min(keys[i] for i in members) == limit,
                slice(int(order[0]), int(order[-1]) + 1) if adjacent else np.where(tokens < 0, order[0], tokens),
            )
        )
        orders.append(order)
    order, total = np.concatenate(orders), packed.ends[-1]
    ordered = len(order) == total and bool((order == np.arange(total)).all())
    indices = [part for rows, _, _, _, queries in shapes for part in (rows, queries) if not isinstance(part, slice)]
    if not ordered:
        indices.append(np.argsort(order, kind="stable")[len(order) - total :])
    place, position, ids, last, *rest = to_device([packed.place, packed.position, packed.ids, packed.last, *indices], device)
    left = iter(rest)

    def on_device(part: slice | Index) -> slice | Tensor:
        return part if isinstance(part, slice) else next(left)

    groups = [
        Group(on_device(rows), count, limit, unmasked, on_device(queries)) for rows, count, limit, unmasked, queries in shapes
    ]
    return PackedStep(place, position, groups, None if ordered else next(left), store), ids, last


def _groups(slots: Sequence[int], counts: Sequence[int], max_distance: int) -> Iterable[list[int]]:
    """Group neighbouring rows with 1, 2-3, 4-7, ... new tokens. On a CPU, idle slots cost more than additional calls."""
    by_size: dict[int, list[list[int]]] = {}
    for i, (slot, count) in enumerate(zip(slots, counts, strict=True)):
        groups = by_size.setdefault(count.bit_length(), [[]])
        if groups[-1] and slot - slots[groups[-1][-1]] > max_distance:
            groups.append([])
        groups[-1].append(i)
    return chain.from_iterable(by_size.values())

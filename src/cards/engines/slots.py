"""Slots: the rows of one preallocated KV cache, found again by what they hold.

A slot remembers the token ids whose keys and values it holds. A new sequence takes an idle slot and keeps the longest
prefix that any slot, idle or busy, holds of it: rolling back a rejected segment costs nothing (the slot is just
shorter) and a fork copies only the tail that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cards.backends.local.attention import Group, Step, running
from cards.errors import check
from cards.usage import open_tickets

COPY_COST = 0.05  # of reading a token again
NEEDED = {"theirs": 1.0, "own": 0.3, "over": 0.05}  # chance that a slot's tokens are needed again: of a request, by whose it is
GRAIN = 64  # keys: on a GPU attention looks at a multiple of them, since some kernels are planned for each length anew
SPREAD = 2  # a view of the cache, idle rows included, costs less than a copy of the rows up to so many times their number
WORTH_WAITING = 16  # tokens: a sequence waits a step for another to read at least so many that both begin with


class Slots:
    """`rows` sequences of up to `length` tokens each. Not thread-safe: one thread owns it.

    forward(input_ids [1, n], position_ids [1, n], last [rows]) runs the model on packed tokens and gives one output a row,
    taken at the packed indices `last`. Memory: rows * length tokens of keys and values, taken at the first step.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int, length: int, device: torch.device):
        check(rows >= 1, f"slots must be at least 1, not {rows}.")
        self.forward, self.rows, self.length, self.device = forward, rows, length, device
        self.caches: dict[int, tuple[Tensor, Tensor]] = {}
        self.tokens: NDArray[np.int64] = np.full((rows, length), -1)
        self.held: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens in the cache
        self.due: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens that will be there once the slot's taker is read
        self.used: NDArray[np.int64] = np.zeros(rows, np.int64)  # when last taken
        self.owner: NDArray[np.int64] = np.zeros(rows, np.int64)  # by which request
        self.idle: NDArray[np.bool_] = np.ones(rows, bool)
        self.clock = 0
        self.grain = 1 if device.type == "cpu" else GRAIN
        self.apart = SPREAD if device.type == "cpu" else rows  # slots from one row to the next that attends with it
        self.flops = 0.0  # of a token read

    def match(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many leading tokens of the sequence each slot holds, [rows]."""
        return self._common(sequence, self.held)

    def coming(self, sequence: Sequence[int]) -> bool:
        """Whether a slot is about to hold much more of the sequence's beginning than any does now."""
        if not (self.due > self.held).any():
            return False
        ids = np.asarray(sequence, np.int64)
        return bool(self._common(ids, self.due).max() >= self.match(ids).max() + WORTH_WAITING)

    def acquire(self, sequence: Sequence[int], keep: int, owner: int = 0) -> tuple[int, int] | None:
        """Take an idle slot for the sequence, of which at most `keep` tokens need no reading, for the ticket `owner`.

        Returns (slot, tokens held), or None if every slot is busy. Prefers slots that lose little by it: few tokens
        beyond the common prefix, long unused, best of requests that are over.
        """
        if not self.idle.any():
            return None
        match = self.match(np.asarray(sequence[:keep], np.int64))
        source = int(match.argmax())
        best = int(match[source])
        self.clock += 1
        chance = dict.fromkeys(open_tickets(), NEEDED["theirs"]) | {owner: NEEDED["own"]}
        needed = np.array([chance.get(one, NEEDED["over"]) for one in self.owner.tolist()])
        needed /= 1 + (self.clock - self.used) / self.rows
        cost = np.where(self.idle, COPY_COST * (best - match) + needed * (self.held - match), np.inf)
        slot = int(cost.argmin())
        if (start := int(match[slot])) < best:
            for keys, values in self.caches.values():
                keys[slot, start:best] = keys[source, start:best]
                values[slot, start:best] = values[source, start:best]
        self.tokens[slot, start : len(sequence)] = sequence[start:]
        self.held[slot], self.due[slot], self.used[slot], self.idle[slot] = best, len(sequence), self.clock, False
        self.owner[slot] = owner
        return slot, best

    def release(self, slot: int) -> None:
        """Give a slot back; what it holds stays until it is taken again."""
        self.idle[slot], self.due[slot] = True, 0

    def read(self, rows: Sequence[tuple[int, Sequence[int]]], outputs: Sequence[int] | None = None) -> Tensor:
        """Read new tokens, each row's behind what its slot holds: rows are (slot, new tokens), in rising slot order.

        As many outputs of each row, one behind the other, as `outputs` says, at its last new tokens; None: one each.
        """
        step, ids, last = self._pack(rows, outputs)
        with running(step):
            output = self.forward(ids, step.position.unsqueeze(0), last)
        for slot, new in rows:
            end = self.held[slot] + len(new)
            self.tokens[slot, self.held[slot] : end] = new
            self.held[slot] = end
        return output

    def forget(self) -> None:
        """Drop everything held, after a step that failed half-way."""
        self.held[:] = 0

    def _common(self, sequence: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        n = len(sequence)
        same = (self.tokens[:, :n] == sequence) & (np.arange(n) < lengths[:, None])
        return np.where(same.all(1), n, same.argmin(1)) if n else np.zeros(self.rows, np.int64)

    def _cache(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's cache; zeros at first, for even what the mask hides must be finite."""
        if layer not in self.caches:
            keys, values = (x.new_zeros(self.rows, self.length, *x.shape[1:]) for x in (key, value))
            self.caches[layer] = keys, values
        return self.caches[layer]

    def _pack(self, rows: Sequence[tuple[int, Sequence[int]]], outputs: Sequence[int] | None) -> tuple[Step, Tensor, Tensor]:
        """The step, the packed token ids [1, tokens] and the packed indices of the tokens whose outputs are wanted."""
        slots, counts = [slot for slot, _ in rows], [len(new) for _, new in rows]
        ends = list(accumulate(counts))
        starts = [end - count for end, count in zip(ends, counts, strict=True)]
        held = self.held[slots].tolist()
        position = np.concatenate([np.arange(h, h + count) for h, count in zip(held, counts, strict=True)])
        place = np.repeat(np.array(slots) * self.length, counts) + position
        groups, laid = [], []
        for members in self._together(slots, counts):
            first, height = slots[members[0]], slots[members[-1]] - slots[members[0]] + 1
            if view := height <= SPREAD * len(members):
                at = [slots[i] - first for i in members]
            else:
                at, height = list(range(len(members))), len(members)
            most, keys = max(counts[i] for i in members), [held[i] + counts[i] for i in members]
            length = min(-(-max(keys) // self.grain) * self.grain, self.length)
            tokens = np.full((height, most), -1)
            for row, i in zip(at, members, strict=True):
                tokens[row, : counts[i]] = np.arange(starts[i], ends[i])
            order = tokens.ravel()
            adjacent = bool((np.diff(order) == 1).all())
            groups.append(
                Group(
                    rows=slice(first, first + height) if view else self._tensor(np.array([slots[i] for i in members])),
                    count=height,
                    length=length,
                    alike=most == 1 and min(keys) == length,
                    queries=slice(int(order[0]), int(order[-1]) + 1)
                    if adjacent
                    else self._tensor(np.where(tokens < 0, order[0], tokens)),
                )
            )
            laid.append(order)
        order = np.concatenate(laid)
        unpack = None
        if len(order) != ends[-1] or (order != np.arange(ends[-1])).any():
            unpack = self._tensor(np.argsort(order, kind="stable")[len(order) - ends[-1] :])
        ids = self._tensor(np.concatenate([np.asarray(new, np.int64) for _, new in rows])).unsqueeze(0)
        step = Step(self._tensor(place), self._tensor(position), groups, unpack, self._cache)
        last = [i for end, count in zip(ends, outputs or [1] * len(ends), strict=True) for i in range(end - count, end)]
        return step, ids, self._tensor(np.array(last))

    def _together(self, slots: Sequence[int], counts: Sequence[int]) -> Iterable[list[int]]:
        """Rows that read 1, 2-3, 4-7, ... tokens each and lie near each other; on a CPU idle slots cost more than calls."""
        runs: dict[int, list[list[int]]] = {}
        for i, (slot, count) in enumerate(zip(slots, counts, strict=True)):
            of_size = runs.setdefault(count.bit_length(), [[]])
            if of_size[-1] and slot - slots[of_size[-1][-1]] > self.apart:
                of_size.append([])
            of_size[-1].append(i)
        return chain.from_iterable(runs.values())

    def _tensor(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

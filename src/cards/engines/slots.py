"""Cache slots: the rows of a KV cache, reused by the longest common prefix.

A slot records the token ids whose keys and values it holds. A new sequence gets an idle slot and reuses its longest prefix
in any slot, idle or busy. So rolling back a rejected segment costs nothing, because the slot only becomes shorter. A new
sequence copies only the part of its prefix that its slot does not hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.errors import check
from cards.usage import open_tickets

COPY_COST = 0.05  # cost of copying a token, relative to reading it
REUSE = {"other": 1.0, "own": 0.3, "ended": 0.05}  # chance that a slot's tokens are needed again, by the request that used it
WORTH_WAITING = 16  # tokens: a sequence waits for another that reads at least this many more tokens of their common prefix

Outputs = Any  # an array of the back end; its first axis runs over outputs of the model
Read = tuple[int, int, Sequence[int]]  # row of the cache, position of the first new token, new tokens


class Cache(ABC):
    """A model and its KV cache: `rows` sequences of up to `length` tokens each, used by the worker thread of `device`.

    A back end implements this class, and `Slots` decides what each row holds. There is no method for a rollback: `read` and
    `copy` have a start position, and the row's previous contents from there on are invalid. If a cache must remove them
    explicitly, it does so in these methods (llama.cpp: remove the positions from `start` on, then decode or copy the sequence).
    A model with state keeps only what is after all tokens of a row (`rolls_back` is false). Then `start` is 0 or the end of the
    row in `read`, and `copy` copies a whole row. Raises SettingError.
    """

    flops: float = 0.0  # floating-point operations per token
    rolls_back: bool = True

    def __init__(self, rows: int, length: int, device: Hashable) -> None:
        check(rows >= 1, f"slots must be at least 1, got {rows}.")
        self.rows, self.length, self.device = rows, length, device

    @abstractmethod
    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> Outputs:
        """Run the model on new tokens of some rows, in ascending order of the rows, and store their keys and values.

        Return the outputs at the last `counts` new tokens of each row, concatenated: [sum(counts), ...]. The computation may
        still run when this returns (see `wait`). The next read may overwrite the outputs.
        """

    @abstractmethod
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the positions start .. end - 1 of one row to another. Before `start` both hold the same tokens."""

    @abstractmethod
    def join(self, parts: Sequence[Outputs]) -> Outputs:
        """Concatenate the outputs of several reads."""

    def select(self, outputs: Outputs, rows: list[int]) -> Outputs:
        """Return some rows of the outputs."""
        return outputs[rows]

    def wait(self) -> None:  # noqa: B027 - most devices have nothing to wait for
        """Wait until the computation of the last read has finished."""

    @abstractmethod
    def clear(self) -> None:
        """Free the memory. The cache is not used afterwards."""

    def interrupt(self) -> None:  # noqa: B027 - most back ends cannot
        """End the current read early with an error, and all later ones. Called in any thread, before the cache is not used."""

    def translate_error(self, error: Exception) -> Exception:
        """Return the error to show to users for an error of `read`."""
        return error


class Slots:
    """A record of the tokens that each cache slot holds. It is not thread-safe: one thread owns it."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.rows, self.length = cache, cache.rows, cache.length
        rows, length = self.rows, self.length
        self.tokens: NDArray[np.int64] = np.full((rows, length), -1)
        self.held: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens in the cache
        self.due: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens that the slot will hold after its sequence is read
        self.used: NDArray[np.int64] = np.zeros(rows, np.int64)  # `clock` when last acquired
        self.owner: NDArray[np.int64] = np.zeros(rows, np.int64)  # ticket id of the request that acquired it
        self.idle: NDArray[np.bool_] = np.ones(rows, bool)
        self.clock = 0

    def match(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many leading tokens of the sequence each slot holds and can give, [rows]."""
        match = self._common(sequence, self.held)
        return match if self.cache.rolls_back else np.where(match == self.held, match, 0)

    def holds(self, sequence: Sequence[int]) -> bool:
        """Return whether a slot holds the whole sequence."""
        return bool(self.match(np.asarray(sequence, np.int64)).max() == len(sequence))

    def will_hold_more(self, sequence: Sequence[int]) -> bool:
        """Return whether a slot will soon hold a much longer prefix of the sequence than any slot holds now."""
        if not (self.due > self.held).any():
            return False
        ids = np.asarray(sequence, np.int64)
        return bool(self._common(ids, self.due).max() >= self.match(ids).max() + WORTH_WAITING)

    def acquire(self, sequence: Sequence[int], keep: int, owner: int = 0) -> tuple[int, int] | None:
        """Acquire an idle slot for the sequence and the ticket `owner`. At most `keep` tokens can come from the cache.

        Return (slot, tokens held), or None if every slot is busy. Prefer slots that lose little: with few tokens beyond the
        common prefix, long unused, and of requests that have ended.
        """
        if not self.idle.any():
            return None
        match = self.match(np.asarray(sequence[:keep], np.int64))
        source = int(match.argmax())
        best = int(match[source])
        self.clock += 1
        chances = dict.fromkeys(open_tickets(), REUSE["other"]) | {owner: REUSE["own"]}
        reuse = np.array([chances.get(ticket, REUSE["ended"]) for ticket in self.owner.tolist()])
        reuse /= 1 + (self.clock - self.used) / self.rows
        lost = self.held - match if self.cache.rolls_back else self.held
        cost = np.where(self.idle, COPY_COST * (best - match) + reuse * lost, np.inf)
        slot = int(cost.argmin())
        if (start := int(match[slot])) < best:
            self.cache.copy(source, slot, start, best)
        self.tokens[slot, start : len(sequence)] = sequence[start:]
        self.held[slot], self.due[slot], self.used[slot], self.idle[slot] = best, len(sequence), self.clock, False
        self.owner[slot] = owner
        return slot, best

    def release(self, slot: int) -> None:
        """Release a slot. It keeps its tokens until it is acquired again."""
        self.idle[slot], self.due[slot] = True, 0

    def read(self, rows: Sequence[tuple[int, Sequence[int]]], counts: Sequence[int] | None = None) -> Outputs:
        """Append new tokens to slots and read them. `rows` are (slot, new tokens), in ascending order of the slots.

        Return the outputs at the last `counts` new tokens of each row, concatenated; None means one output for each row.
        """
        output = self.cache.read([(slot, int(self.held[slot]), new) for slot, new in rows], counts or [1] * len(rows))
        for slot, new in rows:
            end = self.held[slot] + len(new)
            self.tokens[slot, self.held[slot] : end] = new
            self.held[slot] = end
        return output

    def forget(self) -> None:
        """Clear all slots, for instance after a failed step."""
        self.held[:] = 0

    def _common(self, sequence: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        n = len(sequence)
        same = (self.tokens[:, :n] == sequence) & (np.arange(n) < lengths[:, None])
        return np.where(same.all(1), n, same.argmin(1)) if n else np.zeros(self.rows, np.int64)

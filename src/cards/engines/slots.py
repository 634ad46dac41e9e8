"""Slots: the rows of a KV cache, found again by what they hold.

A slot remembers the token ids whose keys and values it holds. A new sequence takes an idle slot and keeps its longest
prefix that any slot holds, idle or busy. So rolling back a rejected segment costs nothing (the slot is just shorter),
and a fork copies only the tail that differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cards.errors import check
from cards.usage import open_tickets

COPY_COST = 0.05  # of reading a token again
NEEDED = {"theirs": 1.0, "own": 0.3, "over": 0.05}  # chance that a slot's tokens are needed again: of a request, by whose it is
WORTH_WAITING = 16  # tokens: a sequence waits a step for another to read at least so many that both begin with

Outputs = Any  # an array of the back end, numpy's or its own: outputs of the model along its first axis
Read = tuple[int, int, Sequence[int]]  # row of the cache, position of the first new token, new tokens


class Cache(ABC):
    """A model and its KV cache: `rows` sequences of up to `length` tokens each, used by the worker thread of `device`.

    A back end implements this class, and `Slots` decides what each row holds. There is no call for a rollback: `read` and
    `copy` say where they write, and what the row holds from there on is void. A cache that must drop it explicitly does so
    then (in llama.cpp: remove the positions from `start` on, then decode or copy the sequence).
    """

    flops: float = 0.0  # floating-point operations a token

    def __init__(self, rows: int, length: int, device: Hashable) -> None:
        check(rows >= 1, f"slots must be at least 1, not {rows}.")
        self.rows, self.length, self.device = rows, length, device

    @abstractmethod
    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> Outputs:
        """Run the model on new tokens of some rows, in rising order of the rows, and keep their keys and values.

        Returns the outputs at the last `counts` new tokens of each row, one row behind the other: [sum(counts), ...]. They
        are complete when this returns.
        """

    @abstractmethod
    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Make the positions start .. end - 1 of one row those of another; before them both hold the same tokens."""

    @abstractmethod
    def join(self, parts: Sequence[Outputs]) -> Outputs:
        """Outputs of several reads, one behind the other."""

    @abstractmethod
    def clear(self) -> None:
        """Free the memory; the cache is not used any more."""

    def in_words(self, error: Exception) -> Exception:
        """The error of a read as users should see it."""
        return error


class Slots:
    """Keeps track of what the rows of a cache hold. Not thread-safe: one thread owns it."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.rows, self.length = cache, cache.rows, cache.length
        rows, length = self.rows, self.length
        self.tokens: NDArray[np.int64] = np.full((rows, length), -1)
        self.held: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens in the cache
        self.due: NDArray[np.int64] = np.zeros(rows, np.int64)  # tokens that will be there once the slot's taker is read
        self.used: NDArray[np.int64] = np.zeros(rows, np.int64)  # when last taken
        self.owner: NDArray[np.int64] = np.zeros(rows, np.int64)  # by which request
        self.idle: NDArray[np.bool_] = np.ones(rows, bool)
        self.clock = 0

    def match(self, sequence: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many leading tokens of the sequence each slot holds, [rows]."""
        return self._common(sequence, self.held)

    def coming(self, sequence: Sequence[int]) -> bool:
        """Return whether a slot will soon hold a much longer prefix of the sequence than any slot does now."""
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
            self.cache.copy(source, slot, start, best)
        self.tokens[slot, start : len(sequence)] = sequence[start:]
        self.held[slot], self.due[slot], self.used[slot], self.idle[slot] = best, len(sequence), self.clock, False
        self.owner[slot] = owner
        return slot, best

    def release(self, slot: int) -> None:
        """Give a slot back. It keeps its tokens until it is taken again."""
        self.idle[slot], self.due[slot] = True, 0

    def read(self, rows: Sequence[tuple[int, Sequence[int]]], counts: Sequence[int] | None = None) -> Outputs:
        """Read new tokens, each row's behind what its slot holds: rows are (slot, new tokens), in rising slot order.

        Returns as many outputs of each row, one behind the other, as `counts` says, at its last new tokens; None: one each.
        """
        output = self.cache.read([(slot, int(self.held[slot]), new) for slot, new in rows], counts or [1] * len(rows))
        for slot, new in rows:
            end = self.held[slot] + len(new)
            self.tokens[slot, self.held[slot] : end] = new
            self.held[slot] = end
        return output

    def forget(self) -> None:
        """Drop everything that the slots hold, for instance after a step that failed half-way."""
        self.held[:] = 0

    def _common(self, sequence: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        n = len(sequence)
        same = (self.tokens[:, :n] == sequence) & (np.arange(n) < lengths[:, None])
        return np.where(same.all(1), n, same.argmin(1)) if n else np.zeros(self.rows, np.int64)

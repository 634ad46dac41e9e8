"""Slots give what a full pass gives, whatever they held before, and copy no more than they must."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import torch
from helpers.families import lm_slots
from helpers.random_models import Pair
from torch import Tensor

from cards.backends.local.cache import TorchCache
from cards.backends.local.proof import lm_outputs
from cards.engines.slots import Slots
from cards.errors import SettingError
from cards.usage import open_tickets, track_usage

ROWS, LENGTH = 3, 24


class Known:
    """Slots over a small model, the model's own answers, and a count of what was read."""

    def __init__(self, pair: Pair, rows: int = ROWS) -> None:
        self.plain = pair.lm
        model = copy.deepcopy(pair.lm)
        _, forward = lm_outputs(model, LENGTH)
        self.read_tokens = 0

        def counted(ids: Tensor, position: Tensor, last: Tensor) -> Tensor:
            self.read_tokens += ids.shape[1]
            return forward(ids, position, last)

        self.slots = lm_slots(model, rows, LENGTH, [counted])
        self.cache = cast(TorchCache, self.slots.cache)
        self.slots.forget()
        self.read_tokens = 0

    def expected(self, sequence: Sequence[int]) -> Tensor:
        logits: Tensor = self.plain(torch.tensor([list(sequence)])).logits
        return logits[0, -1]

    def complete(self, sequence: Sequence[int], *, hold: bool = False, owner: int = 0) -> tuple[int, int]:
        """Take a slot, read what is missing, check; returns (slot, tokens found)."""
        place = self.slots.acquire(sequence, len(sequence) - 1, owner)
        assert place is not None
        slot, held = place
        output = self.slots.read([(slot, sequence[held:])])
        torch.testing.assert_close(output[0], self.expected(sequence), rtol=0, atol=1e-10)
        if not hold:
            self.slots.release(slot)
        return slot, held


@pytest.fixture
def known(gpt2_float64: Pair) -> Known:
    return Known(gpt2_float64)


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def test_any_walk_of_takes_reads_and_releases_gives_what_full_passes_give(known: Known) -> None:
    chance = random.Random(0)
    stems = [[chance.randrange(2, 80) for _ in range(12)] for _ in range(3)]
    open_rows: dict[int, list[int]] = {}
    found = 0
    for _ in range(250):
        if (len(open_rows) < ROWS and chance.random() < 0.5) or not open_rows:
            stem = chance.choice(stems)
            sequence = stem[: chance.randint(1, 12)] + [chance.randrange(2, 80) for _ in range(chance.randint(0, 3))]
            slot, held = known.slots.acquire(sequence, len(sequence) - 1) or pytest.fail("no slot")
            assert slot not in open_rows
            assert known.slots.tokens[slot, :held].tolist() == sequence[:held]
            found += held
            open_rows[slot] = sequence
        members = sorted(chance.sample(sorted(open_rows), chance.randint(1, len(open_rows))))
        for slot in members:  # rows that have been read go on by a few tokens
            if known.slots.held[slot] == len(open_rows[slot]):
                open_rows[slot] += [chance.randrange(2, 80) for _ in range(chance.randint(1, 3))]
        batch = [(slot, open_rows[slot][known.slots.held[slot] :]) for slot in members]
        for (slot, _), row in zip(batch, known.slots.read(batch), strict=True):
            torch.testing.assert_close(row, known.expected(open_rows[slot]), rtol=0, atol=1e-10)
        for slot in [s for s in open_rows if len(open_rows[s]) > LENGTH - 4 or chance.random() < 0.3]:
            known.slots.release(slot)
            del open_rows[slot]
    assert found > 300


def test_match_counts_the_tokens_of_the_longest_common_prefix() -> None:
    chance = np.random.default_rng(0)
    slots = Slots(TorchCache(lambda *_: torch.zeros(0), 6, 10, torch.device("cpu")))
    for _ in range(200):
        slots.tokens[:] = chance.integers(0, 2, slots.tokens.shape)
        slots.held[:] = chance.integers(0, 11, 6)
        sequence = chance.integers(0, 2, chance.integers(0, 11))
        naive = []
        for row, held in zip(slots.tokens, slots.held, strict=True):
            n = 0
            while n < min(held, len(sequence)) and row[n] == sequence[n]:
                n += 1
            naive.append(n)
        assert slots.match(sequence).tolist() == naive


def test_what_a_slot_holds_is_not_read_again(known: Known) -> None:
    slot, _ = known.complete([5, 6, 7, 8, 9])
    assert known.read_tokens == 5
    assert known.complete([5, 6, 7, 8, 9, 10, 11]) == (slot, 5)
    assert known.read_tokens == 7
    assert known.complete([5, 6, 7, 8, 9, 10, 11])[1] == 6
    assert known.read_tokens == 8


def test_a_rollback_costs_nothing_but_the_new_tokens(gpt2_float64: Pair) -> None:
    known = Known(gpt2_float64, rows=1)
    slot, _ = known.complete([5, 6, 7, 8, 9, 10])
    before = [(k.clone(), v.clone()) for k, v in known.cache.layers.values()]
    place = known.slots.acquire([5, 6, 7, 60], 4)
    assert place == (slot, 3)
    for (keys, values), (old_keys, old_values) in zip(known.cache.layers.values(), before, strict=True):
        assert torch.equal(keys, old_keys)
        assert torch.equal(values, old_values)
    known.slots.release(slot)
    known.read_tokens = 0
    assert known.complete([5, 6, 7, 60])[1] == 3
    assert known.read_tokens == 1


def test_a_request_takes_its_own_slot_again_and_then_those_of_requests_that_are_over(known: Known) -> None:
    with track_usage(), track_usage():
        me, other = sorted(open_tickets())
        with track_usage():
            over = max(open_tickets())
            mine, _ = known.complete(range(10, 20), owner=me)
            older, _ = known.complete(range(20, 23), owner=other)
            longest, _ = known.complete(range(30, 45), owner=over)
        assert known.complete([*range(10, 17), 50], owner=me) == (mine, 7)
        with track_usage():
            assert known.complete(range(50, 60), owner=max(open_tickets()))[0] == longest
    assert known.complete(range(60, 70))[0] == older  # all are over: what is short, and long unused


def test_a_fork_copies_only_the_tail_that_differs(known: Known) -> None:
    source, _ = known.complete([5, 6, 7, 8, 9, 10], hold=True)
    other, _ = known.complete([5, 6, 30, 31, 32, 33], hold=True)
    for slot in range(ROWS):
        if slot not in (source, other):
            known.slots.idle[slot] = False
    known.slots.release(other)
    marked = [[cache[other, :2].fill_(777.0) for cache in pair] for pair in known.cache.layers.values()]
    tails = [[cache[other, 5:].clone() for cache in pair] for pair in known.cache.layers.values()]
    assert known.slots.acquire([5, 6, 7, 8, 9, 40], 6) == (other, 5)
    for pair, heads, ends in zip(known.cache.layers.values(), marked, tails, strict=True):
        for cache, head, end in zip(pair, heads, ends, strict=True):
            assert (head == 777.0).all()
            assert torch.equal(cache[other, 2:5], cache[source, 2:5])
            assert torch.equal(cache[other, 5:], end)


def test_a_fork_from_a_busy_slot_leaves_its_owner_as_it_was(known: Known) -> None:
    source, _ = known.complete([5, 6, 7, 8], hold=True)
    fork, held = known.complete([5, 6, 7, 50, 51], hold=True)
    assert fork != source
    assert held == 3
    output = known.slots.read([(source, [9])])
    torch.testing.assert_close(output[0], known.expected([5, 6, 7, 8, 9]), rtol=0, atol=1e-10)


def test_a_new_text_takes_an_empty_slot_before_it_drops_anything(known: Known) -> None:
    taken = {known.complete(sequence)[0] for sequence in ([5, 6, 7], [15, 16, 17], [25, 26, 27])}
    assert len(taken) == ROWS


def test_the_slot_that_loses_least_is_dropped(known: Known) -> None:
    long, _ = known.complete(list(range(10, 30)))
    short, _ = known.complete([5, 6])
    middle, _ = known.complete(list(range(40, 50)))
    assert len({long, short, middle}) == 3
    assert known.complete([70, 71, 72])[0] == short


def test_of_equal_losses_the_longest_unused_slot_is_dropped(known: Known) -> None:
    first, _ = known.complete([10, 11, 12, 13])
    second, _ = known.complete([20, 21, 22, 23])
    third, _ = known.complete([30, 31, 32, 33])
    known.complete([10, 11, 12, 13])
    assert known.complete([70, 71, 72, 73])[0] == second
    assert len({first, second, third}) == 3


def test_no_slot_is_given_twice_and_none_when_all_are_busy(known: Known) -> None:
    taken = [known.slots.acquire([5, 6, 7], 2) for _ in range(ROWS)]
    assert len({place[0] for place in taken if place}) == ROWS
    assert known.slots.acquire([5, 6, 7], 2) is None
    known.slots.release(1)
    assert known.slots.acquire([5, 6, 7], 2) == (1, 0)


def test_no_more_is_kept_than_the_caller_allows(known: Known) -> None:
    known.complete([5, 6, 7, 8])
    for keep in (0, 2, 3):
        slot, held = known.slots.acquire([5, 6, 7, 8], keep) or pytest.fail("no slot")
        assert held == keep
        known.slots.release(slot)
        known.slots.held[slot] = 4


def test_memory_is_rows_times_length_and_never_grows(known: Known) -> None:
    known.complete([5])
    caches = [cache for pair in known.cache.layers.values() for cache in pair]
    places = [cache.data_ptr() for cache in caches]
    assert len(caches) == 2 * 2  # keys and values of two layers
    assert {tuple(cache.shape) for cache in caches} == {(ROWS, LENGTH, 4, 8)}
    for start in range(2, 40):
        known.complete(list(range(start, start + 20)))
    assert [cache.data_ptr() for pair in known.cache.layers.values() for cache in pair] == places


def test_a_forgotten_slot_is_read_again_in_full(known: Known) -> None:
    known.complete([5, 6, 7, 8])
    known.slots.forget()
    known.read_tokens = 0
    assert known.complete([5, 6, 7, 8])[1] == 0
    assert known.read_tokens == 4


def test_a_row_may_fill_its_slot_to_the_last_token(known: Known) -> None:
    sequence = [2 + i % 70 for i in range(LENGTH)]
    known.complete(sequence)
    known.complete([*sequence[:-1], 75])


def test_garbage_behind_a_row_is_never_seen(known: Known) -> None:
    slot, _ = known.complete([5, 6, 7, 8, 9, 10])
    for keys, values in known.cache.layers.values():
        keys[:, 3:] = 1e4
        values[:, 3:] = 1e4
    known.slots.held[slot] = 3
    assert known.complete([5, 6, 7, 60, 61])[1] == 3


def test_there_is_at_least_one_slot() -> None:
    with pytest.raises(SettingError, match="slots"):
        TorchCache(lambda *_: torch.zeros(0), 0, 8, torch.device("cpu"))

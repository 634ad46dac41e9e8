"""Rows join and leave at any step, none is starved, and nothing that goes wrong stays behind.

The scheduler is stepped by hand, over a stand-in for the model whose output for a row is its last token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from cards.engines.scheduler import Pace, PendingCall, PendingResult, Row, Scheduler
from cards.engines.slots import Cache, Read, Slots


class Waiter(PendingCall):
    """Wants `count` tokens after each of its rows; token n + 1 follows token n."""

    def __init__(self, *prompts: Sequence[int], count: int = 1, known: bool = False) -> None:
        super().__init__()
        starts = [np.array([[float(p[-1])]]) if known else None for p in prompts]
        self.rows = [Row(self, list(p), start) for p, start in zip(prompts, starts, strict=True)]
        self.count, self.error = count, None
        self.finished: list[list[int]] = []

    def begin(self) -> Sequence[Row]:
        return self.rows

    def fail(self, error: BaseException) -> None:
        self.error = error  # type: ignore[assignment]


class LastToken(Cache):
    """A model without weights: it outputs each token that it reads, and only sees what its rows hold."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__(rows, length, "nowhere")
        self.broken = False
        self.sizes: list[int] = []  # tokens of each step
        self.held: list[list[int]] = [[] for _ in range(rows)]

    def read(self, rows: Sequence[Read], counts: Sequence[int]) -> NDArray[np.float64]:
        if self.broken:
            raise RuntimeError("out of memory")
        self.sizes.append(sum(len(new) for _, _, new in rows))
        outputs: list[int] = []
        for (row, start, new), count in zip(rows, counts, strict=True):
            assert start <= len(self.held[row])
            self.held[row][start:] = new
            outputs += self.held[row][-count:]
        return np.array(outputs, np.float64)[:, None]

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        assert self.held[source][:start] == self.held[target][:start]
        self.held[target][start:] = self.held[source][start:end]

    def join(self, parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.concatenate(parts)

    def clear(self) -> None:
        self.held.clear()


class Bench:
    """A scheduler without its thread."""

    def __init__(self, rows: int = 3, length: int = 64, budget: int = 1024) -> None:
        self.cache = LastToken(rows, length)
        self.slots = Slots(self.cache)
        self.scheduler = Scheduler(self.slots, lambda rows, output: output[:, 0].tolist(), self.consume, budget)
        worker = self.scheduler.worker
        with worker.condition:
            worker.steppers = [ref for ref in worker.steppers if ref() is not self.scheduler]
        self.sizes = self.cache.sizes
        self.most_active = 0

    def consume(self, rows: Sequence[Row], output: NDArray[np.float64], looks: Sequence[float]) -> Sequence[Row]:
        for row, value in zip(rows, looks, strict=True):
            row.tokens.append(int(value) + 1)
            call = row.call
            assert isinstance(call, Waiter)
            if len(row.tokens) - row.given == call.count:
                row.done = True
                call.finished.append(row.tokens)
        return ()

    def submit(self, call: Waiter) -> Waiter:
        self.scheduler.inbox.append((call.begin, call))
        return call

    def step(self) -> None:
        self.scheduler.step()
        self.most_active = max(self.most_active, len(self.scheduler.active))

    def run(self, most: int = 200) -> int:
        """Step until nothing is left to do."""
        for steps in range(most):
            if not self.scheduler.busy:
                return steps
            self.step()
        raise AssertionError("still busy")


def follow(prompt: list[int], count: int) -> list[int]:
    return prompt + [prompt[-1] + i for i in range(1, count + 1)]


def test_one_step_advances_every_row_by_its_own_number_of_tokens() -> None:
    bench = Bench()
    calls = [bench.submit(Waiter(list(range(100 * i, 100 * i + i + 1)), count=4)) for i in range(1, 4)]
    assert bench.run() == 4
    assert bench.sizes == [2 + 3 + 4, 3, 3, 3]
    assert [call.finished for call in calls] == [[follow(list(range(100 * i, 100 * i + i + 1)), 4)] for i in range(1, 4)]


@pytest.mark.parametrize("joining", [1, 2, 5])
def test_a_row_joins_and_leaves_while_another_decodes(joining: int) -> None:
    bench = Bench()
    long = bench.submit(Waiter([10, 11], count=12))
    for _ in range(joining):
        bench.step()
    short = bench.submit(Waiter([50], count=2))
    bench.step()
    bench.step()
    assert short.finished == [[50, 51, 52]]
    assert not long.finished
    bench.run()
    assert long.finished == [follow([10, 11], 12)]
    assert bench.sizes[joining : joining + 2] == [2, 2]


def test_more_rows_than_slots_wait_and_all_are_served_first_come_first() -> None:
    bench = Bench(rows=2)
    calls = [bench.submit(Waiter([100 * i], count=3)) for i in range(1, 6)]
    order = []
    while bench.scheduler.busy:
        bench.step()
        order += [i for i, call in enumerate(calls) if call.finished and i not in order]
    assert order == [0, 1, 2, 3, 4]
    assert bench.most_active <= 2
    assert [call.finished for call in calls] == [[follow([100 * i], 3)] for i in range(1, 6)]
    assert bench.slots.idle.all()


def test_a_long_prompt_is_read_in_pieces_and_others_go_on_meanwhile() -> None:
    bench = Bench(budget=8)
    talker = bench.submit(Waiter([500], count=30))
    bench.step()
    reader = bench.submit(Waiter(list(range(40)), count=1))
    steps = 1
    while not reader.finished:
        bench.step()
        steps += 1
        assert len(talker.rows[0].tokens) == 1 + steps  # a token every step
    assert steps == 1 + 6  # 40 tokens, 7 a step
    assert max(bench.sizes) <= 8
    bench.run()
    assert talker.finished == [follow([500], 30)]
    assert reader.finished == [[*range(40), 40]]


def test_a_prompt_longer_than_the_budget_is_read_by_itself_in_pieces() -> None:
    bench = Bench(budget=16)
    call = bench.submit(Waiter(list(range(50))))
    bench.run()
    assert bench.sizes == [16, 16, 16, 2]
    assert call.finished == [[*range(50), 50]]
    assert call.account.usage.lm_prefill_tokens == 50
    assert call.account.usage.lm_steps == 4


def test_rows_whose_output_is_known_need_no_step_to_begin() -> None:
    bench = Bench()
    bench.submit(Waiter([1, 2, 3]))
    bench.run()
    bench.sizes.clear()
    calls = [bench.submit(Waiter([1, 2, 3], count=1, known=True)) for _ in range(2)]
    bench.run()
    assert bench.sizes == []
    assert [call.finished for call in calls] == [[[1, 2, 3, 4]]] * 2
    assert [call.account.usage.lm_cached_tokens for call in calls] == [3, 3]
    assert [call.account.usage.lm_prefill_tokens for call in calls] == [0, 0]


def test_a_known_output_whose_text_is_gone_from_the_slots_is_read_again() -> None:
    bench = Bench()
    call = bench.submit(Waiter([1, 2, 3], count=2, known=True))
    bench.run()
    assert call.finished == [[1, 2, 3, 4, 5]]
    assert call.account.usage.lm_prefill_tokens == 3


def test_a_cancelled_job_frees_its_rows_at_the_next_step() -> None:
    bench = Bench(rows=2)
    gone = bench.submit(Waiter([1], [2], [3], count=50))
    bench.step()
    after = bench.submit(Waiter([7], count=2))
    assert not bench.slots.idle.any()
    gone.cancelled = True
    bench.run()
    assert after.finished == [[7, 8, 9]]
    assert bench.slots.idle.all()
    assert not gone.finished
    assert len(gone.rows[2].tokens) == 1  # what waited was never read


def test_a_cancelled_job_costs_nothing_more() -> None:
    bench = Bench()
    gone = bench.submit(Waiter([1, 2, 3], count=50))
    bench.step()
    bench.step()
    before = gone.account.usage.to_dict()
    gone.cancelled = True
    bench.run()
    assert gone.account.usage.to_dict() == before


def test_a_paused_job_reads_nothing_and_keeps_its_rows_until_it_goes_on() -> None:
    bench = Bench()
    paused = bench.submit(Waiter([1, 2], count=6))
    other = bench.submit(Waiter([50], count=3))
    bench.step()
    paused.paused = True
    bench.run()
    assert other.finished
    assert len(paused.rows[0].tokens) == 3
    assert not bench.scheduler.busy
    paused.paused = False
    assert bench.scheduler.busy
    bench.run()
    assert paused.finished == [follow([1, 2], 6)]


def test_a_paused_job_can_be_cancelled() -> None:
    bench = Bench()
    call = bench.submit(Waiter([1, 2], count=6))
    bench.step()
    call.paused = call.cancelled = True
    bench.run()
    assert bench.slots.idle.all()


def test_a_step_that_fails_fails_its_requests_and_nobody_later(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(rows=2)
    calls = [bench.submit(Waiter([10 * i], count=5)) for i in range(1, 4)]
    bench.step()
    bench.cache.broken = True
    with caplog.at_level(logging.CRITICAL, "cards"):
        bench.step()
    assert [str(call.error) for call in calls] == ["out of memory"] * 3
    assert not bench.slots.held.any()
    bench.cache.broken = False
    later = bench.submit(Waiter([10], count=5))
    bench.run()
    assert later.finished == [follow([10], 5)]
    assert later.error is None
    assert bench.slots.idle.all()


def test_tokens_that_a_job_drew_itself_are_not_prefill() -> None:
    bench = Bench()
    call = bench.submit(Waiter([1, 2, 3], count=5))
    bench.run()
    usage = call.account.usage
    assert (usage.lm_prefill_tokens, usage.lm_steps, usage.lm_cached_tokens) == (3, 5, 0)


def test_forgetting_between_steps_makes_rows_read_again_and_changes_nothing_else() -> None:
    bench = Bench()
    call = bench.submit(Waiter([1, 2, 3], count=5))
    bench.step()
    bench.step()
    bench.slots.forget()
    bench.run()
    assert call.finished == [follow([1, 2, 3], 5)]
    assert bench.sizes == [3, 1, 5, 1, 1]


def test_the_pace_learns_what_a_token_adds_to_a_step() -> None:
    pace = Pace(guess=0.5)
    for i in range(19):
        pace.observe(1 + i % 7, 2.0 + 0.1 * (1 + i % 7))
    assert pace.row_cost == 0.5  # too early to tell
    for i in range(40):
        pace.observe(1 + i % 7, 2.0 + 0.1 * (1 + i % 7))
    assert pace.row_cost == pytest.approx(0.05)


def test_the_pace_of_steps_of_one_size_is_the_guess() -> None:
    pace = Pace(guess=0.3)
    for _ in range(50):
        pace.observe(4, 1.0)
    assert pace.row_cost == 0.3


def test_the_pace_keeps_what_it_learned_from_other_steps() -> None:
    pace = Pace(guess=0.5)
    for i in range(1000):
        pace.observe(1 + i % 7 if i < 100 else 4, 2.0 + 0.1 * (1 + i % 7 if i < 100 else 4))
    assert pace.row_cost == pytest.approx(0.05)


def test_a_caller_who_has_closed_the_loop_is_told_nothing() -> None:
    async def ask() -> PendingResult:
        return PendingResult()

    loop = asyncio.new_event_loop()
    question = loop.run_until_complete(ask())
    loop.close()
    question.resolve(1)
    question.fail(RuntimeError("boom"))
    assert not question.future.done()

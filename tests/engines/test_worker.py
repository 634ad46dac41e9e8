"""The thread that runs models: requests fail with their cause, and engines come and go."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator
from typing import cast

import pytest
from helpers.random_models import Pair, letter_engine
from torch import Tensor

from cards import Decoder
from cards.backends.local.cache import TorchCache
from cards.engines.base import Ask
from cards.errors import CardsError
from cards.events import Event, Prompt, Response
from cards.methods import Vanilla


async def test_a_model_that_fails_fails_the_request_and_the_engine_stays_usable(caplog: pytest.LogCaptureFixture) -> None:
    engine = letter_engine(slots=4)
    decoder = Decoder(engine, None, Vanilla(chunk=3))
    want = await decoder.agenerate("ab", max_tokens=9)
    cache = cast(TorchCache, engine.scheduler.slots.cache)
    forward, calls = cache.forward, 0

    def breaks(*given: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("the device is gone")
        return forward(*given)

    cache.forward = breaks
    with caplog.at_level(logging.CRITICAL, "cards"), pytest.raises(RuntimeError, match="the device is gone"):
        await decoder.agenerate("ba", max_tokens=9)
    assert (await decoder.agenerate("ab", max_tokens=9)).segments == want.segments
    assert engine.scheduler.slots.idle.all()
    await engine.aclose()


async def test_a_request_that_cannot_begin_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """A prompt that did not come from `encode` may be too long for the slots."""
    engine = letter_engine(slots=2, context=16)
    ask = Ask(Prompt("a" * 40, (2,) * 40), Response(), 4)
    with caplog.at_level(logging.CRITICAL, "cards"), pytest.raises((CardsError, ValueError)):
        await asyncio.wait_for(anext(engine.propose(ask)), 5)
    assert len((await Decoder(engine, None, Vanilla()).agenerate("ab", max_tokens=3)).token_ids) == 3
    await engine.aclose()


async def test_a_closed_engine_says_so() -> None:
    engine = letter_engine(slots=2)
    await engine.aclose()
    with pytest.raises(CardsError):
        await asyncio.wait_for(Decoder(engine, None, Vanilla()).agenerate("ab", max_tokens=3), 5)


async def test_engines_may_come_and_go_while_others_work() -> None:
    stays = Decoder(letter_engine(slots=2), None, Vanilla())
    want = (await stays.agenerate("ab", max_tokens=40)).segments
    for _ in range(4):
        working = asyncio.ensure_future(stays.agenerate("ab", max_tokens=40))
        engine = letter_engine(slots=2)
        assert len((await Decoder(engine, None, Vanilla()).agenerate("ab", max_tokens=3)).token_ids) == 3
        await engine.aclose()
        assert (await working).segments == want
    await stays.aclose()


async def exhaust(events: AsyncIterator[Event]) -> None:
    async for _ in events:
        pass


async def test_closing_an_engine_fails_what_it_is_at() -> None:
    engine = letter_engine(slots=2)
    events = Decoder(engine, None, Vanilla(chunk=2)).astream("ab", max_tokens=100)
    await anext(events)
    await engine.aclose()
    with pytest.raises(CardsError, match="closed"):
        await asyncio.wait_for(exhaust(events), 5)


async def test_a_closed_engine_is_let_go(gpt2_float64: Pair) -> None:
    engine = gpt2_float64.engine(slots=2)
    await Decoder(engine, None, Vanilla()).agenerate("w2", max_tokens=3)
    await engine.aclose()
    gone = weakref.ref(engine.scheduler)
    del engine
    for _ in range(1000):  # most of all where the machine is busy
        gc.collect()
        if gone() is None:
            break
        threading.Event().wait(0.02)
    assert gone() is None

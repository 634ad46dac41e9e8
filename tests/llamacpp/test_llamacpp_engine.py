"""The llama.cpp engine against the contract of engines, and against transformers on the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from helpers.gguf_files import write_mamba

from cards import Entropy
from cards.backends.llamacpp.engine import LlamaEngine
from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Ask, Engine
from cards.engines.speculative import SpeculativeEngine
from cards.events import Message, Response
from cards.registry import load_engine
from cards.sampling import Sampling
from cards.testing import EngineContract
from cards.testing.engine_contract import proposals
from cards.usage import track_usage

QUESTION: list[Message] = [{"role": "user", "content": "What did you think of the new Star Wars film?"}]
PROMPTS: tuple[str | list[Message], ...] = (QUESTION, "Once upon a time", "It's 7 o'clock,\n\nand 1984 is a book. ")


class TestLlamaEngine(EngineContract):
    prompts = (QUESTION, "Once upon a time")

    @pytest.fixture
    async def engine(self, engine: LlamaEngine) -> Engine:
        return engine


class TestFewSequences(EngineContract):
    """More candidates than sequences, so that rows wait, fork and are evicted."""

    prompts = (QUESTION, "Once upon a time")

    @pytest.fixture
    async def engine(self, lm_file: str) -> AsyncIterator[Engine]:
        engine = LlamaEngine.load(lm_file, dtype="float32", slots=3, context=96, threads=1)
        yield engine
        await engine.aclose()


class TestSpeculativeLlama(EngineContract):
    """A draft of another GGUF file."""

    prompts = (QUESTION, "Once upon a time")
    segments_are_prefixes = False

    @pytest.fixture
    async def engine(self, lm_file: str, gguf_folder: Path) -> AsyncIterator[Engine]:
        engine = load_engine(lm_file, draft=str(gguf_folder / "draft.gguf"), dtype="float32", threads=1)
        assert isinstance(engine, SpeculativeEngine)
        yield engine
        await engine.aclose()


async def test_logits_equal_those_of_transformers_to_1e_4(engine: LlamaEngine, tiny: TransformersEngine) -> None:
    for text in PROMPTS:
        prompt, wanted = engine.encode(text), tiny.encode(text)
        assert (prompt.text, prompt.token_ids) == (wanted.text, wanted.token_ids)
        last = len(prompt.token_ids) - 1
        difference = await engine.logits(prompt, Response(), last) - await tiny.logits(wanted, Response(), last)
        assert np.abs(difference).max() < 1e-4


async def test_proposals_and_their_cost_equal_those_of_transformers(engine: LlamaEngine, tiny: TransformersEngine) -> None:
    for sampling in (Sampling(), Sampling(0.7), Sampling(0.8, 40, 0.9), Sampling(0.0)):
        found, costs = [], []
        for one in (engine, tiny):
            one.forget()
            with track_usage() as usage:
                ask = Ask(one.encode(QUESTION), Response(), 24, Entropy(1, 24, 3.0), sampling, seed=5, n=6)
                found.append([(s.text, s.token_ids, s.finish_reason) for s in await proposals(one, ask)])
                await one.settle()
            costs.append(
                (usage.lm_steps, usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.lm_cached_tokens, usage.flops)
            )
        assert found[0] == found[1]
        assert costs[0] == costs[1]


async def test_a_fork_and_a_rollback_read_no_token_again(engine: LlamaEngine) -> None:
    prompt = engine.encode(QUESTION)
    ask = Ask(prompt, Response(), 8, seed=1, n=8)
    first = await proposals(engine, ask)
    for candidate in (first[0], first[3]):
        with track_usage() as usage:
            await engine.logits(prompt, Response(token_ids=candidate.token_ids[:4]), 1)
        assert (usage.flops, usage.lm_cached_tokens) == (engine.model.flops, len(prompt.token_ids) + 3)


async def test_cancelled_requests_leave_no_sequence_taken(engine: LlamaEngine) -> None:
    ask = Ask(engine.encode(QUESTION), Response(), 40, n=6)
    wanted = await proposals(engine, ask)
    for seed in range(40):
        async with aclosing(engine.propose(Ask(ask.prompt, Response(), 40, seed=seed, n=6))) as batches:
            batch = asyncio.ensure_future(anext(batches))
            await asyncio.wait([batch], timeout=None if seed % 2 else 0.001)
            batch.cancel()
            await asyncio.gather(batch, return_exceptions=True)
    await engine.settle()
    assert engine.rows_in_use == 0
    assert engine.scheduler.slots.idle.all()
    assert await proposals(engine, ask) == wanted


class TestModelWithState(EngineContract):
    """A Mamba, whose sequences fork as a whole and never go back."""

    prompts = (QUESTION, "Once upon a time")

    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        engine = LlamaEngine.load(str(write_mamba(tmp_path / "mamba.gguf")), dtype="float32", threads=1)
        assert not engine.scheduler.slots.cache.rolls_back
        yield engine
        await engine.aclose()

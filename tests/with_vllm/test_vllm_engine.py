"""The vLLM engine proposes, token for token, what the transformers engine proposes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cards import Entropy, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import Boundary, Punctuation, Step, Whole
from cards.engines.base import Ask, Engine
from cards.errors import PromptError, SettingError, UnknownNameError
from cards.events import Message, Response, Segment
from cards.grammar import Grammar
from cards.sampling import Sampling
from cards.shaping import Shaping
from cards.usage import track_usage

PROMPTS: list[str | Sequence[Message]] = [
    [Message(role="user", content="What did you think of the new Star Wars film?")],
    "I went to the",
    [Message(role="user", content="My dog died yesterday."), Message(role="assistant", content="Oh no, I am so sorry."),
     Message(role="user", content="She was fifteen years old, and we had her since she was a puppy. What should I do now?")],
]  # fmt: skip
# Always among few tokens: with thousands, the random number often falls so near to the edge of an unlikely token that the last
# digit of the logits decides.
WAYS: dict[str, tuple[Boundary, Sampling, tuple[str, ...]]] = {
    "entropy": (Entropy(4, 40, 2.5), Sampling(0.7, 40), ()),
    "early": (Entropy(1, 12, 1.0), Sampling(1.0, 40), ()),
    "mcp": (Entropy(2, 40, 0.7, "mcp"), Sampling(1.0, 40, 0.9), ()),
    "evidential": (Entropy(3, 20, 0.75, "evidential"), Sampling(0.9, 20, 0.95), ()),
    "greedy": (Entropy(4, 40, 2.5), Sampling(0.0), ()),
    "fixed": (FixedLength(maximum=7), Sampling(0.8, 40), ()),
    "punctuation": (Punctuation(), Sampling(0.8, 30), ()),
    "step": (Step(delimiter=" a"), Sampling(1.0, 40), ()),
    "whole": (Whole(), Sampling(0.9, 50), ()),
    "stop strings": (Entropy(4, 30, 3.5), Sampling(1.0, 40), (" the", "n't")),
}


async def proposals(engine: Engine, ask: Ask) -> list[Segment]:
    found: list[Segment] = []
    async with aclosing(engine.propose(ask)) as batches:
        async for batch in batches:
            assert batch
            found += batch
    return found


def same(got: Sequence[Segment], want: Sequence[Segment]) -> None:
    """Equal in all but rounding of the uncertainty."""
    assert [replace(s, entropy=None) for s in got] == [replace(s, entropy=None) for s in want]
    assert [s.entropy for s in got] == [s.entropy if s.entropy is None else pytest.approx(s.entropy, abs=1e-4) for s in want]


def ask_of(engine: Engine, **options: Any) -> Ask:
    given: dict[str, Any] = {"max_tokens": 30, "boundary": Entropy(4, 40, 2.5), "sampling": Sampling(0.7, 40), "n": 3}
    return Ask(engine.encode(PROMPTS[0]), Response(), **given | options)


def test_it_is_the_same_model_to_its_users(engine: Any, twin: TransformersEngine) -> None:
    assert (engine.vocabulary, engine.end_ids, engine.context) == (twin.vocabulary, twin.end_ids, twin.context)
    assert (engine.entropy_threshold, engine.chats, engine.rows) == (twin.entropy_threshold, twin.chats, 24)
    assert engine.flops == twin.scheduler.slots.cache.flops
    assert engine.tokenize("What now?") == twin.tokenize("What now?")
    for prompt in PROMPTS:
        assert engine.encode(prompt) == twin.encode(prompt)


@pytest.mark.parametrize("way", WAYS)
async def test_it_proposes_what_the_transformers_engine_proposes(engine: Engine, twin: TransformersEngine, way: str) -> None:
    boundary, sampling, stop = WAYS[way]
    ends = set()
    for seed in range(6):
        prompt = engine.encode(PROMPTS[seed % 3])
        ask = Ask(prompt, Response(), 40, boundary, sampling, seed, segment=seed % 4, first=seed % 5, n=6, stop=stop)
        got, want = await asyncio.gather(proposals(engine, ask), proposals(twin, ask))
        same(got, want)
        ends |= {(s.finish_reason, s.entropy is not None) for s in want}
        response = Response() + want[0]
        if response.finish_reason is None:  # a later segment
            ask = replace(ask, response=response, segment=7, max_tokens=20)
            same(await proposals(engine, ask), await proposals(twin, ask))
    assert isinstance(boundary, Entropy) == any(boundary for _, boundary in ends)


async def test_candidates_do_not_depend_on_how_many_are_asked_for(engine: Engine) -> None:
    ask = ask_of(engine, n=21, seed=3, sampling=Sampling(1.0, 40))
    together = await proposals(engine, ask)
    same(together, [s for i in range(0, 21, 7) for s in await proposals(engine, replace(ask, first=i, n=7))])
    same(together[4:5], await proposals(engine, replace(ask, first=4, n=1)))
    assert len({s.token_ids for s in together}) > 5


async def test_more_candidates_than_rows_wait(engine: Engine, twin: TransformersEngine) -> None:
    ask = ask_of(engine, n=60, max_tokens=8)
    same(await proposals(engine, ask), await proposals(twin, ask))


async def test_the_first_list_comes_without_waiting_for_the_longest(engine: Engine) -> None:
    ask = ask_of(engine, n=12, boundary=Whole(), sampling=Sampling(1.0, 40), max_tokens=100)
    lengths = [len(s.token_ids) for s in await proposals(engine, ask)]
    quick = min(range(12), key=lambda i: lengths[i])
    assert lengths[quick] + 10 < max(lengths[quick:])
    async with aclosing(engine.propose(replace(ask, first=quick, n=12 - quick))) as batches:
        assert len(await anext(batches)) < 12 - quick


async def test_many_asks_at_once_come_out_as_alone(engine: Engine) -> None:
    asks = [ask_of(engine, seed=i, n=1 + i % 4, boundary=WAYS[way][0], stop=WAYS[way][2]) for i, way in enumerate(WAYS)]
    alone = [await proposals(engine, ask) for ask in asks]
    for got, want in zip(await asyncio.gather(*(proposals(engine, ask) for ask in asks)), alone, strict=True):
        same(got, want)


async def test_requests_of_others_are_neither_changed_nor_in_the_way(engine: Any) -> None:
    """Plain requests in the same batch: as without ours."""
    tokens = list(engine.encode(PROMPTS[0]).token_ids)

    async def plain() -> list[int]:
        drawn: list[int] = []
        async with aclosing(engine.host.generate(tokens, temperature=0.8, top_k=20, seed=5, max_tokens=25)) as outputs:
            async for output in outputs:
                drawn += output.outputs[0].token_ids
        return drawn

    def begun() -> Any:
        return asyncio.wrap_future(engine.host.submit(plain))

    ask = ask_of(engine, n=8, seed=1)
    alone, ours = await begun(), await proposals(engine, ask)
    *mixed, both = await asyncio.gather(begun(), begun(), begun(), proposals(engine, ask))
    assert mixed == [alone] * 3
    same(both, ours)


async def test_a_context_that_is_full_ends_the_answer(engine: Engine, twin: TransformersEngine) -> None:
    text, count = "We talked about it. ", 1
    while len(engine.tokenize(text * (count + 1))) < engine.context - 6:
        count += 1
    prompt = engine.encode(text * count)
    assert engine.context - len(prompt.token_ids) < 40
    ask = Ask(prompt, Response(), 100, Whole(), Sampling(1.0, 40), n=4)
    got = await proposals(engine, ask)
    same(got, await proposals(twin, ask))
    assert any(len(prompt.token_ids) + len(s.token_ids) == engine.context and s.finish_reason == "length" for s in got)
    with pytest.raises(PromptError, match=f"context of 'vllm:tiny' is {engine.context}"):
        engine.encode(text * (count + 10))


async def test_the_books(engine: Engine) -> None:
    """The prompt is read but for what the cache holds in whole blocks; tokens are counted as drawn."""
    prompt = engine.encode("A prompt that no other test has. " * 12)
    ask = Ask(prompt, Response(), 20, FixedLength(maximum=9), Sampling(1.0), n=4)
    with track_usage() as usage:
        segments = await proposals(engine, ask)
        await engine.settle()
    size, blocks = len(prompt.token_ids), (len(prompt.token_ids) - 1) // 32
    assert blocks > 1
    assert usage.lm_decoded_tokens == sum(len(s.token_ids) for s in segments)
    assert usage.lm_steps == max(len(s.token_ids) for s in segments)
    assert usage.lm_prefill_tokens + usage.lm_cached_tokens == 4 * size
    assert usage.lm_seconds > 0
    with track_usage() as again:
        await proposals(engine, ask)
        await engine.settle()
    assert again.lm_cached_tokens == 4 * 32 * blocks
    engine.forget()
    with track_usage() as anew:
        await proposals(engine, replace(ask, n=1))
        await engine.settle()
    assert anew.lm_cached_tokens == 0


async def test_leaving_frees_the_rows(engine: Any) -> None:
    """What is left undone is aborted inside vLLM: nothing holds its cache, which else could not be reset."""
    ask = ask_of(engine, n=24, boundary=Whole(), sampling=Sampling(1.0), max_tokens=400)
    with track_usage() as usage:
        async with aclosing(engine.propose(ask)) as batches:
            await anext(batches)
        await engine.settle()
    assert not engine.host.llm.output_processor.has_unfinished_requests()
    assert usage.lm_decoded_tokens > 0
    for _ in range(1000):
        if await asyncio.wrap_future(engine.host.submit(engine.host.llm.reset_prefix_cache)):
            break
    else:
        raise AssertionError("vLLM still holds rows")
    assert len(await proposals(engine, replace(ask, max_tokens=4))) == 24


async def test_a_cancelled_task_frees_the_rows_too(engine: Any) -> None:
    task = asyncio.create_task(proposals(engine, ask_of(engine, n=24, boundary=Whole(), max_tokens=400)))
    while not engine.host.llm.output_processor.has_unfinished_requests():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.settle()
    assert not engine.host.llm.output_processor.has_unfinished_requests()


async def test_ctrl_c_is_not_for_vllms_processes(engine: Any) -> None:
    """They get it too, as all of a terminal's foreground processes do, and must not end by it."""
    [process] = engine.host.llm.engine_core.resources.engine_manager.processes
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    assert blocked >> (signal.SIGINT - 1) & 1
    os.kill(process.pid, signal.SIGINT)
    assert len(await proposals(engine, ask_of(engine))) == 3


def test_wrong_options_are_named() -> None:
    from cards.backends.vllm.engine import VLLMEngine

    with pytest.raises(UnknownNameError, match=r"vLLM option 'max_num_seq'. Did you mean 'max_num_seqs'"):
        VLLMEngine.load("tiny", max_num_seq=3)
    with pytest.raises(UnknownNameError, match="model 'tinny'"):
        VLLMEngine.load("tinny")
    with pytest.raises(SettingError, match="got 'cuda:7'"):
        VLLMEngine.load("tiny", device="cuda:7")
    with pytest.raises(UnknownNameError, match="dtype"):
        VLLMEngine.load("tiny", dtype="float23")
    with pytest.raises(SettingError, match="speculative_config"):
        VLLMEngine.load("tiny", speculative_config={"method": "ngram"})


SHAPINGS = {
    "json": Shaping(Grammar.json_schema(
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}, "required": ["a"],
         "additionalProperties": False}, whitespace=False)),
    "regex": Shaping(Grammar.regex(r" [A-Z][a-z]{3,12}( [a-z]{2,12}){2,6}\.")),
    "penalties": Shaping(None, ((5, -4.0), (300, 1.5)), 0.8, 0.4, 1.3),
    "all": Shaping(Grammar.regex(r"( [a-z]{1,9}){4,9}\."), ((260, 2.0),), 0.5, 0.5, 1.2),
}  # fmt: skip


@pytest.mark.parametrize("way", SHAPINGS)
async def test_shaped_proposals_are_those_of_the_transformers_engine(
    engine: Engine, twin: TransformersEngine, way: str
) -> None:
    shaping, reasons = SHAPINGS[way], set()
    for seed in range(4):
        boundary = (Entropy(2, 12, 1.5), FixedLength(maximum=5))[seed % 2]
        ask = ask_of(engine, seed=seed, n=4, boundary=boundary, shaping=shaping, max_tokens=40, sampling=Sampling(0.8, 20))
        for segment in range(20):  # the grammar and the counts go on from segment to segment
            ask = replace(ask, segment=segment)
            got, want = await asyncio.gather(proposals(engine, ask), proposals(twin, ask))
            same(got, want)
            reasons |= {s.finish_reason for s in want}
            response = ask.response + want[-1]
            if response.finish_reason is not None:
                break
            ask = replace(ask, response=response, max_tokens=40 - len(response.token_ids))
    assert (shaping.grammar is None) or "stop" in reasons

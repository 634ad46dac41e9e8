"""llama.cpp's server, in the form of its answers."""

from __future__ import annotations

import pytest
from helpers.model_server import LM, running
from helpers.served_engines import TALK, Local, ask_of, connected, proposals

from cards import Decoder, Entropy, FixedLength
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Result
from cards.methods import BestOfN
from cards.registry import load_engine
from cards.usage import track_usage

pytestmark = pytest.mark.slow  # real servers


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="module")
def reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")


async def test_llama_cpp_tells_its_chat_template_and_its_context(tiny: TransformersEngine, reward: ClassifierReward) -> None:
    server = LM(tiny, form="llama.cpp")
    async with connected(server, tokenizer=None) as (engine, _):
        assert (engine.chats, engine.context, engine.served.vocabulary) == (True, tiny.context, len(tiny.tokenizer))
        assert (engine.encode(TALK).text, engine.encode(TALK).messages) == (tiny.encode(TALK).text, tuple(TALK))
        got = await Decoder(engine, reward, BestOfN(n=3)).agenerate(TALK, max_tokens=24, seed=3, trace=True)
        want = await Decoder(Local(tiny), reward, BestOfN(n=3)).agenerate(TALK, max_tokens=24, seed=3, trace=True)
        assert texts(got) == texts(want)
        assert server.bodies[-1]["samplers"] == ["temperature", "top_k", "min_p", "top_p"]
    door = LM(tiny, form="llama.cpp").app()
    door.faults.extend([None, None, None, 404])  # a server whose properties are not to be had
    with running(door) as address:
        assert not load_engine(address + "/v1").chats


def texts(result: Result) -> set[str]:
    """Of all candidates: which is best may differ, for a reward reads other tokens."""
    return {s.text for kept in result.segments for s in (kept, *kept.rejected)}


async def test_llama_cpp_tells_the_last_token_of_a_character(tiny: TransformersEngine) -> None:
    text = " na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{GRINNING FACE} \N{CJK UNIFIED IDEOGRAPH-65E5}!"
    ids = tuple(tiny.tokenizer(text)["input_ids"])
    server = LM(tiny, form="llama.cpp")
    async with connected(server) as (engine, _):
        server.script = ids
        for boundary in (FixedLength(maximum=100), Entropy(1, 100, 2.0, "mcp")):
            [segment] = await proposals(engine, ask_of(engine, boundary=boundary, max_tokens=len(ids)))
            assert (segment.text, segment.token_ids, segment.finish_reason) == (text, ids, "length")


async def test_a_segment_too_short_for_a_character_ends_the_answer(tiny: TransformersEngine) -> None:
    """It would come again and again."""
    server = LM(tiny, form="llama.cpp")
    async with connected(server) as (engine, _):
        server.script = tuple(tiny.tokenizer("\N{GRINNING FACE}")["input_ids"])
        [segment] = await proposals(engine, ask_of(engine, boundary=FixedLength(maximum=1)))
        assert (segment.token_ids, segment.finish_reason) == ((), "length")


@pytest.mark.parametrize("tokenizer", ["tiny", None])
async def test_llama_cpp_tells_what_it_found_in_its_cache(tiny: TransformersEngine, tokenizer: str | None) -> None:
    """Whether its streams are read to their ends or left."""
    async with connected(LM(tiny, form="llama.cpp"), tokenizer=tokenizer) as (engine, _):
        length = len(tiny.encode(TALK).token_ids)
        for stop in ((), (" ",)):
            with track_usage() as usage:
                await proposals(engine, ask_of(engine, stop=stop, n=2, max_tokens=9))
            assert (usage.lm_prefill_tokens, usage.lm_cached_tokens) == (2 * length - 6, 6)

"""Engines at addresses of OpenAI-compatible servers, against the model that is served."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.model_server import LM, rewards, running
from helpers.random_models import byte_tokenizer
from helpers.served_engines import TALK, Local, ask_of, connected, proposals
from helpers.waiting import eventually
from typer.testing import CliRunner

from cards import CARDS, Decoder, Entropy, FixedLength, Punctuation
from cards.backends.http.connect import EXTRAS
from cards.backends.http.openai import tokens_of
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.cli import app
from cards.engines.interval import entropy_interval
from cards.errors import MismatchError, ModelError, PromptError, SettingError, UnavailableError
from cards.events import Prompt, Response, Result
from cards.grammar import Grammar
from cards.methods import BestOfN, Vanilla
from cards.registry import load_engine
from cards.shaping import Shaping

pytestmark = pytest.mark.slow  # real servers


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="module")
def reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")


def shapes(result: Result) -> list[Any]:
    return [(s.text, s.token_ids, s.finish_reason, s.candidates, s.fallback) for s in result.segments]


RULES = [
    Entropy(4, 24, 0.6, "mcp"),
    Punctuation(),
    FixedLength(maximum=7),
]


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize("form", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("boundary", RULES, ids=lambda b: type(b).__name__)
async def test_answers_are_those_of_the_served_model(
    tiny: TransformersEngine, reward: ClassifierReward, boundary: Any, form: str
) -> None:
    """With exact boundaries nothing differs; the stop string lies across tokens."""
    method = CARDS(boundary=boundary, width=3, max_rejections=6, temperature=0.8)
    async with connected(LM(tiny, form=form)) as (engine, _):
        assert engine.vocabulary == tiny.vocabulary
        for seed in range(2):
            options = {"seed": seed, "max_tokens": 40, "stop": ["e th", "! "]}
            want = await Decoder(Local(tiny), reward, method).agenerate(TALK, **options)
            got = await Decoder(engine, reward, method).agenerate(TALK, **options)
            assert shapes(got) == shapes(want)
            assert got.reward == pytest.approx(want.reward, abs=1e-5)


async def test_entropy_is_the_middle_of_its_interval(tiny: TransformersEngine) -> None:
    boundary = Entropy(2, 24, 3.0)
    near = decided = 0
    async with connected(LM(tiny, form="llama.cpp")) as (engine, _):
        for seed in range(6):
            ask = ask_of(engine, boundary=boundary, seed=seed, n=2)
            for got, want in zip(await proposals(engine, ask), await proposals(Local(tiny), ask), strict=True):
                length = min(len(got.token_ids), len(want.token_ids))
                assert got.token_ids[:length] == want.token_ids[:length]
                logits = await tiny.logits(ask.prompt, Response(token_ids=got.token_ids[:length]))
                low, high = interval(logits[0])
                if got.token_ids == want.token_ids:
                    decided += 1
                    if want.entropy is not None:
                        assert got.entropy == pytest.approx((low + high) / 2, abs=1e-4)
                        near += 1
                else:  # only where the interval leaves it open
                    assert low < boundary.threshold <= high
    assert near >= 4
    assert decided >= 10


def interval(logits: Any) -> tuple[float, float]:
    p = np.exp(logits - logits.max(), dtype=np.float64)
    return entropy_interval(np.sort(p / p.sum())[::-1][:20].tolist(), 20, p.size)


async def test_without_a_tokenizer_text_goes_out_and_comes_in(tiny: TransformersEngine, reward: ClassifierReward) -> None:
    async with connected(LM(tiny), tokenizer=None) as (engine, _):
        assert not engine.chats
        assert not engine.served.ids
        assert engine.vocabulary not in ("", tiny.vocabulary)
        prompt = "I liked the film because"
        result = await Decoder(engine, reward, CARDS(width=2, max_rejections=3)).agenerate(prompt, max_tokens=24, seed=3)
        assert result.text == engine.stream_vocabulary.decode(result.token_ids)
        assert result.usage.lm_decoded_tokens - result.usage.lm_wasted_tokens == len(result.token_ids)
        whole = Vanilla(chunk=None, temperature=0.7, top_k=None)
        got = await Decoder(engine, None, whole).agenerate(prompt, max_tokens=24, seed=3)
        want = await Decoder(Local(tiny), None, whole).agenerate(prompt, max_tokens=24, seed=3)
        assert (got.text, len(got.token_ids), got.finish_reason) == (want.text, len(want.token_ids), want.finish_reason)
        with pytest.raises(PromptError, match="tokenizer="):
            engine.encode(TALK)
        with pytest.raises(PromptError, match="empty"):
            engine.encode(" ")
        with pytest.raises(MismatchError, match="tokens"):
            engine.tokenize("a")


async def test_a_tokenizer_gives_the_template_to_a_server_that_tells_no_ids(tiny: TransformersEngine) -> None:
    server = LM(tiny, ids=False)
    async with connected(server) as (engine, _):
        assert engine.chats
        assert not engine.served.ids
        await proposals(engine, ask_of(engine))
        rendered = tiny.encode(TALK).text
        assert server.bodies[-1]["prompt"] == rendered.removeprefix(tiny.tokenizer.bos_token)


async def test_several_tokens_in_an_event(tiny: TransformersEngine) -> None:
    """Those after the boundary were drawn, and are waste."""
    for tokenizer in ("tiny", None):
        async with (
            connected(LM(tiny), tokenizer=tokenizer) as (single, _),
            connected(LM(tiny, chunk=5), tokenizer=tokenizer) as (fives, _),
        ):
            ask = ask_of(single, boundary=Entropy(4, 24, 0.6, "mcp"), n=4)
            one, five = await proposals(single, ask), await proposals(fives, replace(ask, prompt=ask_of(fives).prompt))
            assert [(s.text, len(s.token_ids)) for s in one] == [(s.text, len(s.token_ids)) for s in five]
            assert [s.entropy for s in one] == pytest.approx([s.entropy for s in five], abs=1e-5)


async def test_what_the_server_refuses_is_not_asked_of_it(tiny: TransformersEngine, caplog: pytest.LogCaptureFixture) -> None:
    server = LM(tiny, top=5, strict=True, ids=False)
    async with connected(server, tokenizer=None) as (engine, _):
        assert (engine.served.top, engine.served.extras) == (5, ())
        assert "top_k" in caplog.text
        assert len(await proposals(engine, ask_of(engine, boundary=Entropy(2, 9, 3.0), n=3))) == 3
    server = LM(tiny, strict=True, takes=frozenset(name for name, _ in EXTRAS))
    async with connected(server, tokenizer=None) as (engine, _):
        assert engine.served.extras == EXTRAS  # without what only llama.cpp knows


async def test_log_probabilities_after_temperature_are_no_measure(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny, cooled=True)) as (engine, _):
        assert engine.served.top == 0
        with pytest.raises(MismatchError, match=r"with the temperature.*fixed:15"):
            await proposals(engine, ask_of(engine, boundary=Entropy()))
        assert len(await proposals(engine, ask_of(engine, boundary=FixedLength(maximum=3)))) == 1
        with pytest.raises(MismatchError, match="logits"):
            await Decoder(engine, None, Vanilla()).engine.logits(engine.encode(TALK), Response())


async def test_evidential_uncertainty_needs_all_logits(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny)) as (engine, _):
        with pytest.raises(MismatchError, match="all logits"):
            await proposals(engine, ask_of(engine, boundary=Entropy(measure="evidential", threshold=0.5)))


@pytest.mark.parametrize("shaping", [Shaping(presence_penalty=1.0), Shaping(None, ((5, 1.0),)), "grammar"], ids=str)
async def test_servers_without_our_processor_refuse_grammars_and_penalties(tiny: TransformersEngine, shaping: Any) -> None:
    if shaping == "grammar":
        pytest.importorskip("llguidance")
        shaping = Shaping(Grammar.regex("a+"))
    async with connected(LM(tiny)) as (engine, _):
        with pytest.raises(MismatchError, match="cannot apply grammars, logit_bias or penalties exactly"):
            await Decoder(engine, None, Vanilla()).agenerate(TALK, shaping=shaping)
        with pytest.raises(MismatchError, match="cannot apply"):
            await proposals(engine, ask_of(engine, shaping=shaping))


async def test_books(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny)) as (engine, _):
        usage = (await Decoder(engine, None, Vanilla(chunk=None)).agenerate(TALK, max_tokens=6)).usage
        length = len(engine.encode(TALK).token_ids)
        assert (usage.lm_steps, usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.lm_wasted_tokens) == (6, length, 6, 0)
        assert 0 < usage.lm_seconds <= usage.seconds
        usage = (await Decoder(engine, count, BestOfN(n=3)).agenerate(TALK, max_tokens=6)).usage
        assert (usage.lm_steps, usage.lm_prefill_tokens, usage.lm_decoded_tokens, usage.rounds) == (6, 3 * length, 18, 1)


def count(prompt: str, response: str) -> float:
    return float(len(response))


# What goes wrong.


async def test_failures_before_the_first_token_do_not_show(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny)) as (engine, door):
        want = await proposals(engine, ask_of(engine, n=2))
        door.faults.extend([500, "drop", 429, 503])
        assert await proposals(engine, ask_of(engine, n=2)) == want


async def test_a_stream_that_breaks_is_an_error(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny)) as (engine, door):
        door.faults.append("cut")
        with pytest.raises(UnavailableError, match="/completions interrupted"):
            await proposals(engine, ask_of(engine))
        door.faults.append("cut")
        with pytest.raises(UnavailableError) as caught:
            await Decoder(engine, None, Vanilla(chunk=4)).agenerate(TALK, max_tokens=8)
        assert caught.value.partial is not None
        assert await proposals(engine, ask_of(engine))


async def test_a_server_that_is_gone_and_comes_back(tiny: TransformersEngine) -> None:
    door = LM(tiny).app()
    with running(door) as address:
        engine = load_engine(address + "/v1", tokenizer="tiny", retries=1)
        want = await proposals(engine, ask_of(engine))
    with pytest.raises(UnavailableError, match="not available"):
        await proposals(engine, ask_of(engine))
    with running(door, int(address.rpartition(":")[2])):
        assert await proposals(engine, ask_of(engine)) == want
        await engine.aclose()


async def test_leaving_ends_the_drawing(tiny: TransformersEngine) -> None:
    """Of many candidates one is taken: the server stops writing the others; so too when the asker is cancelled."""
    server = LM(tiny, pause=0.02)
    async with connected(server) as (engine, _):
        ask = ask_of(engine, n=4, max_tokens=300, boundary=FixedLength(maximum=300))
        one = asyncio.create_task(proposals(engine, ask))
        await eventually(lambda: server.unfinished == 4, lambda: asyncio.sleep(0.01))
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        drawn = await stopped(server)
        await asyncio.sleep(0.1)
        assert server.drawn == drawn
        short = replace(ask, max_tokens=2)
        async with aclosing(engine.propose(short)) as batches:
            assert await anext(batches)


async def stopped(server: LM) -> int:
    """Tokens drawn, once no more are."""
    last = -1
    while last != server.drawn:
        last = server.drawn
        await asyncio.sleep(0.2)
    return last


async def test_too_long_a_prompt(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny)) as (engine, _):
        with pytest.raises(PromptError, match="shorten"):
            engine.encode("word " * 600)
    for form, said in (("vllm", "maximum context length"), ("llama.cpp", "available context size")):
        async with connected(LM(tiny, form=form), tokenizer=None) as (engine, _):
            with pytest.raises(PromptError, match=rf"too long .* {said}"):
                await Decoder(engine, None, Vanilla()).agenerate("word " * 600)


def test_no_server_at_the_address() -> None:
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1/v1/models is not available"):
        load_engine("http://127.0.0.1:1/v1", retries=0)


def test_a_wrong_address_key_model_or_tokenizer(tiny: TransformersEngine) -> None:
    with running(LM(tiny, key="right").app()) as address:
        with pytest.raises(SettingError, match="usually ends in /v1"):
            load_engine(address)
        with pytest.raises(SettingError, match=r"api_key=.*CARDS_API_KEY"):
            load_engine(address + "/v1", api_key="wrong")
        with pytest.raises(SettingError, match=r"does not have model 'huge'. It has: tiny"):
            load_engine(address + "/v1#huge")
        with pytest.raises(SettingError, match="No tokenizer was found at '/nowhere'"):
            load_engine(address + "/v1#tiny", tokenizer="/nowhere", api_key="right")
        with pytest.raises(SettingError, match="server chooses device"):
            load_engine(address + "/v1", device="cuda")
        assert load_engine(address + "/v1#tiny", api_key="right").name == "tiny"


def test_addresses_on_the_command_line(tiny: TransformersEngine, reward: ClassifierReward) -> None:
    with running(LM(tiny).app()) as model, running(rewards(reward, tiny)) as scores:
        said = ["generate", "The film was", "--model", f"{model}/v1", "--reward", f"{scores}/score", "--target", "-9"]
        ran = CliRunner().invoke(app, [*said, "--max-tokens", "8", "--json"])
        assert ran.exit_code == 0, ran.stderr
        assert json.loads(ran.stdout)["usage"]["rm_calls"] > 1
    ran = CliRunner().invoke(app, ["generate", "Hello", "--model", "http://[::1", "--method", "vanilla"])
    assert ran.exit_code == 2
    assert "is not a valid address" in ran.stderr


@pytest.mark.parametrize("form", ["vllm", "llama.cpp"])
def test_a_tokenizer_that_is_not_the_servers(tiny: TransformersEngine, form: str) -> None:
    with running(LM(tiny, form=form).app()) as address, pytest.raises(ModelError, match="does not match the served model"):
        load_engine(address + "/v1", tokenizer=byte_tokenizer())


def test_pieces_of_a_stream() -> None:
    """A character in two tokens, and an end."""
    shown = {"tokens": ["\ufffd"], "top_logprobs": [{"a": -1.0}]}
    assert [t.text for t in tokens_of({"text": "", "logprobs": shown})] == [""]
    shown = {"tokens": ["\ufffd", " b"], "top_logprobs": [{"a": -1.0}, {"a": -2.0}]}
    assert [(t.text, t.top) for t in tokens_of({"text": "é b", "logprobs": shown})] == [("", (-1.0,)), ("é b", (-2.0,))]
    assert [t.text for t in tokens_of({"text": "word", "logprobs": None})] == ["word"]
    assert tokens_of({"text": "", "logprobs": None}) == []
    assert [(t.text, t.id) for t in tokens_of({"text": "ab", "token_ids": [3]})] == [("ab", 3)]


async def test_prompt_of_the_server(tiny: TransformersEngine) -> None:
    async with connected(LM(tiny), tokenizer=None) as (engine, _):
        assert engine.encode("Hello") == Prompt("Hello", vocabulary=engine.vocabulary)

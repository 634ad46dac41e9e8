"""Engine and reward at the addresses of vLLM servers: the answers of the same pair in transformers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.model_server import running
from helpers.waiting import eventually

import cards
from cards import CARDS, Decoder, Entropy
from cards.backends.http.client import Client
from cards.backends.http.connect import probe
from cards.backends.http.openai import OpenAIEngine
from cards.backends.http.served import ModelFiles, ServedModel
from cards.backends.http.vllm import VLLMHTTPEngine
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.boundaries import Boundary, FixedLength, Punctuation, Whole
from cards.engines.ask import Ask
from cards.engines.base import Engine
from cards.engines.interval import entropy_interval
from cards.errors import CardsError, ModelError, RewardError, SettingError, UnavailableError
from cards.events import Message, Response, Result, Segment
from cards.grammar import Grammar
from cards.methods import STARS, BestOfN, Vanilla
from cards.methods.base import Method
from cards.registry import load_engine, load_reward
from cards.rewards.base import Reward
from cards.sampling import Sampling
from cards.serve.app import make_app
from cards.serve.options import ServerOptions
from cards.shaping import Shaping
from cards.usage import track_usage

TINY = Path(cards.__file__).parent / "tiny"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
COMMON = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "24", "--block-size", "32")
TALK = [Message(role="user", content="What did you think of the new Star Wars film?")]
LONG = 400  # tokens, more than are drawn before one looks
PROMPTS: list[str | Sequence[Message]] = [TALK, [Message(role="user", content="I am so tired of my job.")], "Once upon a time"]
pytestmark = [pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning"), pytest.mark.timeout(600)]


@dataclass
class Server:
    """`vllm serve` of an embedded model."""

    folder: str
    options: tuple[str, ...]
    port: int = 0
    process: Any = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [sys.executable, str(Path(__file__).parent / "vllm_server.py"), "serve", str(TINY / self.folder)]
        command += ["--port", str(self.port), *COMMON, *self.options]
        self.process = subprocess.Popen(command, env=os.environ | QUIET, start_new_session=True)

    def wait(self) -> None:
        while True:
            assert self.process.poll() is None, "the server ended"
            try:
                if httpx.get(f"{self.address}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()

    def count(self, *names: str) -> float:
        """The sum of metrics of vLLM's."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        begins = tuple(f"vllm:{name}{{" for name in names)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(begins))


@pytest.fixture(scope="module")
def lm() -> Iterator[Server]:
    yield from served("lm", "--logprobs-mode", "processed_logits", "--enable-prompt-tokens-details")


@pytest.fixture(scope="module")
def rm() -> Iterator[Server]:
    yield from served("rm", "--runner", "pooling")


def served(folder: str, *options: str) -> Iterator[Server]:
    server = Server(folder, options)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def remote(lm: Server) -> Any:
    engine = load_engine(lm.address + "/v1", slots=24)
    assert isinstance(engine, VLLMHTTPEngine)
    yield engine
    await engine.aclose()


@pytest.fixture(params=["/classify", "/pooling", ""])
async def scores(rm: Server, request: pytest.FixtureRequest) -> Any:
    reward = load_reward(rm.address + request.param)
    yield reward
    await reward.aclose()


async def proposals(engine: Engine, ask: Ask) -> list[Segment]:
    async with aclosing(engine.propose(ask)) as batches:
        return [segment async for batch in batches for segment in batch]


def same(got: Segment, want: Segment) -> None:
    bare: dict[str, Any] = {"reward": None, "threshold": None, "entropy": None, "rejected": ()}
    assert replace(got, **bare) == replace(want, **bare)
    for name in ("reward", "threshold", "entropy"):
        value = getattr(want, name)
        assert getattr(got, name) == (None if value is None else pytest.approx(value, abs=1e-4))
    for a, b in zip(got.rejected, want.rejected, strict=True):
        same(a, b)


def same_answer(got: Result, want: Result) -> None:
    assert (got.text, got.token_ids, got.finish_reason) == (want.text, want.token_ids, want.finish_reason)
    for a, b in zip(got.segments, want.segments, strict=True):
        same(a, b)


def test_the_engine_is_known_by_the_files_of_its_model(remote: Engine, twin: TransformersEngine) -> None:
    assert (remote.vocabulary, remote.end_ids, remote.context) == (twin.vocabulary, twin.end_ids, twin.context)
    assert (remote.entropy_threshold, remote.chats) == (twin.entropy_threshold, twin.chats)
    assert remote.encode(TALK) == twin.encode(TALK)


WAYS: dict[str, tuple[Boundary, Sampling, tuple[str, ...]]] = {
    "entropy": (Entropy(4, 40, 2.5), Sampling(0.7, 40), ()),
    "mcp": (Entropy(2, 40, 0.7, "mcp"), Sampling(1.0, None, 0.9), ()),
    "evidential": (Entropy(3, 20, 0.75, "evidential"), Sampling(0.9, 20, 0.95), ()),
    "greedy": (Entropy(4, 40, 2.5), Sampling(0.0), ()),
    "fixed": (FixedLength(maximum=7), Sampling(0.8), ()),
    "punctuation": (Punctuation(), Sampling(0.8, 30), ()),
    "whole": (Whole(), Sampling(0.9, 50), ()),
    "stop strings": (Entropy(4, 30, 3.5), Sampling(1.0), (" the", "n't")),
}


@pytest.mark.parametrize("way", WAYS)
async def test_it_proposes_what_the_transformers_engine_proposes(remote: Engine, twin: TransformersEngine, way: str) -> None:
    boundary, sampling, stop = WAYS[way]
    for seed in range(6):
        ask = Ask(remote.encode(PROMPTS[seed % 3]), Response(), 40, boundary, sampling, seed, seed % 4, seed % 5, 6, stop)
        for got, want in zip(await proposals(remote, ask), await proposals(twin, ask), strict=True):
            same(got, want)


METHODS: dict[str, Method] = {
    "auto": CARDS(),
    "one": CARDS(width=1),
    "all": CARDS(width=21),
    "mcp": CARDS(measure="mcp", entropy_threshold=0.7, top_p=0.9),
    "stars": STARS(),
    "best of n": BestOfN(n=5),
}


@pytest.mark.parametrize("name", METHODS)
async def test_answers_are_those_of_transformers(
    remote: Engine, rm: Server, twin: TransformersEngine, twin_reward: ClassifierReward, name: str
) -> None:
    reward = load_reward(rm.address)
    ours, theirs = Decoder(remote, reward, METHODS[name]), Decoder(twin, twin_reward, METHODS[name])
    for seed in range(3):
        options: dict[str, Any] = {"seed": seed, "max_tokens": 48, "trace": True}
        got = await ours.agenerate(PROMPTS[seed], **options)
        same_answer(got, await theirs.agenerate(PROMPTS[seed], **options))
        usage = got.usage
        assert usage.lm_wasted_tokens == usage.lm_decoded_tokens - len(got.token_ids) >= 0
        assert usage.lm_prefill_tokens >= 0
        assert usage.rm_tokens > 0
    await reward.aclose()


async def test_rewards_are_those_of_the_classifier(scores: Reward, twin_reward: ClassifierReward, twin: Engine) -> None:
    prompt = twin.encode(TALK)
    texts = ["", " Good.", " I hate you, you idiot.", " It was so good that I saw it twice, and then I saw it again."]
    answers = [Response(text, twin.tokenize(text)) for text in texts]
    want = await twin_reward.score(prompt, answers)
    assert await scores.score(prompt, answers) == pytest.approx(want, abs=1e-5)
    assert max(want) - min(want) > 0.1
    assert (scores.target, scores.context) == (twin_reward.target, twin_reward.context)


async def begun(engine: Engine, n: int) -> asyncio.Task[list[Segment]]:
    """Proposals of LONG tokens, of which the first are there."""
    with track_usage() as usage:
        ask = Ask(engine.encode(TALK), Response(), LONG, Whole(), Sampling(5.0), n=n)
        task = asyncio.create_task(proposals(engine, ask))
    await eventually(lambda: usage.lm_decoded_tokens > 0 or task.done(), lambda: asyncio.sleep(0.01))
    assert not task.done()
    return task


async def test_leaving_ends_the_drawing(lm: Server, remote: Engine) -> None:
    before = lm.count("generation_tokens_total")
    task = await begun(remote, 8)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await eventually(lambda: lm.count("num_requests_running", "num_requests_waiting") == 0, lambda: asyncio.sleep(0.05))
    assert lm.count("generation_tokens_total") - before < 8 * LONG / 2


def test_servers_of_the_other_kind(rm: Server, lm: Server) -> None:
    with pytest.raises(CardsError):
        load_engine(rm.address + "/v1", retries=0)
    with pytest.raises(SettingError, match="rejected"):
        load_reward(lm.address + "/classify", retries=0)
    with pytest.raises(ModelError, match="tokenizer="):
        load_reward(rm.address, tokenizer="/nowhere")


async def test_a_server_that_dies_and_comes_back(lm: Server, rm: Server, twin: TransformersEngine) -> None:
    """Last, as it ends the others' server."""
    engine, reward = load_engine(lm.address + "/v1", retries=1), load_reward(rm.address, retries=1)
    upstream = load_engine(lm.address + "/v1", retries=1)
    app = make_app(upstream, None, Vanilla(temperature=5.0), ServerOptions())
    body = {"prompt": "Once upon a time", "max_tokens": LONG, "stream": True}
    with running(app) as address:
        async with (
            httpx.AsyncClient(timeout=60) as client,
            client.stream("POST", address + "/v1/completions", json=body) as told,
        ):
            lines = told.aiter_lines()
            assert '"choices"' in await anext(lines)  # it is being told when
            task = await begun(engine, 4)
            lm.kill()
            rest = [line async for line in lines]
        assert '"model_unavailable"' in "".join(rest)
        assert httpx.get(address + "/ready").status_code == 503
        lm.start()
        lm.wait()
        assert httpx.get(address + "/ready").status_code == 200
        assert httpx.post(address + "/v1/completions", json=body | {"stream": False, "max_tokens": 8}).status_code == 200
        await upstream.aclose()
    with pytest.raises(UnavailableError, match=r"interrupted|sent an error|not available"):
        await task
    rm.kill()
    decoder = Decoder(twin, reward, CARDS())
    with pytest.raises(RewardError, match="not available") as caught:
        await decoder.agenerate(TALK, max_tokens=8)
    assert isinstance(caught.value.__cause__, UnavailableError)
    assert caught.value.partial is not None
    assert caught.value.partial.text == ""
    plain = Vanilla(chunk=None)
    got = await Decoder(engine, None, plain).agenerate(TALK, max_tokens=12)
    assert got.token_ids == (await Decoder(twin, None, plain).agenerate(TALK, max_tokens=12)).token_ids
    await engine.aclose()
    await reward.aclose()


async def test_without_the_flag(twin: TransformersEngine) -> None:
    """The server says what it lacks; as any OpenAI-compatible one it serves yet: ids in and out, entropies as intervals."""
    for server in served("lm"):
        with pytest.raises(SettingError, match="--logprobs-mode processed_logits"):
            load_engine(server.address + "/v1")
        client = Client(server.address + "/v1")
        local = ModelFiles.find(str(TINY / "lm"), (), "lm")
        assert local is not None
        engine = OpenAIEngine(client, await probe(client, ServedModel(str(TINY / "lm"), 512, 4096), local.tokenizer), local)
        assert (engine.served.top, engine.served.ids) == (20, True)
        prompt = engine.encode(TALK)
        found = await proposals(engine, Ask(prompt, Response(), 40, Entropy(2, 20, 3.0), Sampling(1.0), n=8))
        assert len({s.token_ids for s in found}) > 4
        for segment in found:
            logits = (await twin.logits(prompt, Response(token_ids=segment.token_ids)))[0]
            p = np.exp(logits - logits.max(), dtype=np.float64)
            low, high = entropy_interval(np.sort(p / p.sum())[::-1][:20].tolist(), 20, p.size)
            assert segment.entropy is None or low - 1e-4 <= segment.entropy <= high + 1e-4
        assert any(segment.entropy for segment in found)
        await engine.aclose()


async def test_shaped_proposals_are_those_of_the_other_engine(remote: Engine, twin: TransformersEngine) -> None:
    shaping = Shaping(Grammar.regex(r"( [a-z]{1,9}){4,9}\."), ((260, 2.0),), 0.5, 0.5, 1.2)
    for seed, boundary in enumerate((Entropy(2, 12, 1.5), FixedLength(maximum=5), Whole())):
        ask = Ask(remote.encode(TALK), Response(), 40, boundary, Sampling(0.8, 20), seed=seed, n=4, shaping=shaping)
        for segment in range(20):
            ask = replace(ask, segment=segment)
            wanted = await proposals(twin, ask)
            for got, want in zip(await proposals(remote, ask), wanted, strict=True):
                same(got, want)
            response = ask.response + wanted[-1]
            if response.finish_reason is not None:
                break
            ask = replace(ask, response=response, max_tokens=40 - len(response.token_ids))

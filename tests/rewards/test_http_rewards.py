"""Rewards at addresses, against the reward that is served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from helpers.model_server import Faulty, rewards, running

from cards import CARDS, Decoder
from cards.backends.http.rewards import PlainReward, PredictReward, RerankReward
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import RewardError, SettingError, UnavailableError
from cards.events import Message, Prompt, Response
from cards.registry import load_reward
from cards.usage import track_usage

pytestmark = pytest.mark.slow  # real servers

TEXTS = ["", " Good.", " I hate you, you idiot.", " It was so good that I saw it twice."]


@pytest.fixture(scope="module")
def tiny() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="module")
def reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")


@pytest.fixture
def serve(tiny: TransformersEngine, reward: ClassifierReward) -> Callable[..., Any]:
    @contextmanager
    def serve(path: str = "", answer: Any = None, **options: Any) -> Iterator[tuple[Any, Faulty]]:
        door = rewards(reward, tiny, answer)
        with running(door) as address:
            found: Any = load_reward(address + path, **({"retries": 1} | options))
            found.client.backoff = 0.001
            door.requests.clear()
            yield found, door

    return serve


def asked(tiny: TransformersEngine) -> tuple[Prompt, list[Response]]:
    return tiny.encode("What did you think of it?"), [Response(text, tiny.tokenize(text)) for text in TEXTS]


@pytest.mark.parametrize(
    ("path", "kind"), [("/score", PlainReward), ("/rerank", RerankReward), ("", RerankReward), ("/", RerankReward)]
)
async def test_scores_are_those_of_the_served_reward(
    serve: Any, tiny: TransformersEngine, reward: ClassifierReward, path: str, kind: Any
) -> None:
    prompt, responses = asked(tiny)
    with serve(path, target=2.5) as (remote, _):
        assert type(remote) is kind
        assert remote.target == 2.5
        with track_usage() as usage:
            got = await remote.score(prompt, responses)
        assert got == pytest.approx(await reward.score(prompt, responses), abs=1e-5)
        assert usage.rm_calls == len(TEXTS)
        assert usage.rm_seconds > 0
        await remote.aclose()


async def test_labels(serve: Any, tiny: TransformersEngine) -> None:
    prompt, responses = asked(tiny)
    with serve("/predict", output="good") as (good, _), serve("/predict", output="bad") as (bad, _):
        assert type(good) is PredictReward
        scores = await good.score(prompt, responses)
        assert await bad.score(prompt, responses) == pytest.approx([-s for s in scores])
        assert max(scores) - min(scores) > 0.1
        await good.aclose()
        await bad.aclose()
    with serve("/predict") as (unclear, _):
        with pytest.raises(RewardError, match=r"2 labels: .*good.*output="):
            await unclear.score(prompt, responses)
        unclear.output = "god"
        with pytest.raises(RewardError, match=r"Its labels: .*good"):
            await unclear.score(prompt, responses)
        await unclear.aclose()
    with serve("/score") as (remote, _):
        with pytest.raises(SettingError, match="one output"):
            load_reward(remote.name, output="good")
        await remote.aclose()


async def test_many_texts_go_in_batches(serve: Any, tiny: TransformersEngine) -> None:
    prompt, _ = asked(tiny)
    responses = [Response("a" * i, (5,) * i) for i in range(70)]
    with serve("/score", answer=lambda found: {"rewards": [1.0] * len(found)}) as (remote, door):
        assert await remote.score(prompt, responses) == [1.0] * 70
        assert len(door.requests) == 3
        await remote.aclose()


async def test_plain_json_has_messages_and_texts(tiny: TransformersEngine) -> None:
    api, seen = FastAPI(), []

    @api.post("/score")
    async def score(body: dict[str, Any]) -> Any:
        seen.append(body)
        return {"rewards": [0.5] * len(body["responses"])}

    talk = [Message(role="user", content="Hello")]
    prompt = tiny.encode(talk)
    with running(Faulty(api)) as address:
        remote = load_reward(address + "/score")
        assert await remote.score(prompt, [Response(" Hi.", (1,))]) == [0.5]
        await remote.aclose()
    assert seen == [{"prompt": prompt.text, "messages": talk, "responses": [" Hi."]}]


async def test_what_fails_once_does_not_show(serve: Any, tiny: TransformersEngine, reward: ClassifierReward) -> None:
    prompt, responses = asked(tiny)
    with serve("/score") as (remote, door):
        want = await remote.score(prompt, responses)
        for fault in (500, 503, 429, "drop"):
            door.faults.append(fault)
            assert await remote.score(prompt, responses) == pytest.approx(want, abs=1e-5)
        await remote.aclose()


@pytest.mark.parametrize("fault", [500, "drop", "hang", "text"])
async def test_a_server_that_fails_accepts_nothing(serve: Any, tiny: TransformersEngine, fault: Any) -> None:
    with serve("/score", timeout=0.5) as (remote, door):
        remote.target = -100.0  # any score would do
        decoder = Decoder(tiny, remote, CARDS())
        door.faults.extend([fault] * 2)
        with pytest.raises(RewardError, match=r"The reward could not be computed: .*/score") as caught:
            await decoder.agenerate("Well,", max_tokens=8)
        assert isinstance(caught.value.__cause__, UnavailableError)
        assert caught.value.partial is not None
        assert caught.value.partial.text == ""
        await remote.aclose()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"rewards": [1.0]}, "1 scores for 4"),
        ({"rewards": [1.0] * 5}, "5 scores for 4"),
        ({"rewards": [1.0, "NaN", 1.0, 1.0]}, "finite number"),
        ({"rewards": [1.0, None, 1.0, 1.0]}, "unknown format"),
        ({"scores": [1.0] * 4}, "unknown format"),
        ([1.0] * 4, "unknown format"),
    ],
)
async def test_scores_that_are_none(serve: Any, tiny: TransformersEngine, answer: Any, says: str) -> None:
    prompt, responses = asked(tiny)
    with serve("/score", answer=lambda _: answer) as (remote, _):
        with pytest.raises(RewardError, match=says):
            await remote.score(prompt, responses)
        await remote.aclose()


@pytest.mark.parametrize("status", [401, 404, 422])
async def test_a_refused_request_is_a_failure_of_the_reward(serve: Any, tiny: TransformersEngine, status: int) -> None:
    prompt, responses = asked(tiny)
    with serve("/score") as (remote, door):
        door.faults.append(status)
        with pytest.raises(RewardError, match="denied access" if status == 401 else "rejected the request"):
            await remote.score(prompt, responses)
        await remote.aclose()


async def test_leaving_is_seen(serve: Any, tiny: TransformersEngine) -> None:
    prompt, responses = asked(tiny)
    with serve("/score") as (remote, door):
        door.faults.append("hang")
        task = asyncio.create_task(remote.score(prompt, responses))
        while not door.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while not door.left:
            await asyncio.sleep(0.01)
        await remote.aclose()


def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1/v1/models is not available"):
        load_reward("http://127.0.0.1:1", retries=0)


def test_placement_is_not_ours() -> None:
    with pytest.raises(SettingError, match="server chooses device"):
        load_reward("http://127.0.0.1:1/score", device="cuda")

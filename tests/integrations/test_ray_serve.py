"""Two decoders behind one address answer as the library does, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from helpers.ray_cluster import ServeDeploySchema, ask, cluster, ray_serve, wait

import cards
from cards.serve.options import ServerOptions

pytestmark = pytest.mark.timeout(900)
SETTINGS = ray_serve.Settings(settings={"max_rejections": 3}, loading={"slots": 4})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    decoders = ray_serve.DecoderReplica.options(num_replicas=2, autoscaling_config=None, max_ongoing_requests=2)
    with cluster(ray_serve.Front.bind(SETTINGS, decoders.bind(SETTINGS))) as found:
        yield found


KEY = {"Authorization": "Bearer k"}


def decoders() -> list[psutil.Process]:
    family = psutil.Process().children(recursive=True)
    return [process for process in family if "ServeReplica:default:Decoder" in process.name() + " ".join(process.cmdline())]


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_answers_are_those_of_the_library(address: str) -> None:
    decoder = cards.Decoder("tiny", "tiny", cards.CARDS(max_rejections=3))
    result = decoder([{"role": "user", "content": "What do you like?"}], seed=3, max_tokens=12)
    assert text(ask(address, ["What do you like?"])).strip() == result.text.strip()
    with httpx.stream(
        "POST",
        f"{address}/v1/chat/completions",
        json={
            "model": "tiny",
            "messages": [{"role": "user", "content": "What do you like?"}],
            "seed": 3,
            "max_tokens": 12,
            "stream": True,
        },
        timeout=300,
    ) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"]).strip() == result.text.strip()


def test_a_conversation_stays_with_its_decoder(address: str) -> None:
    seen = set()
    for i in range(8):
        first = ask(address, [f"Question {i}?"], max_tokens=2)
        again = ask(address, [f"Question {i}?", "Yes.", "And then?"], max_tokens=2, seed=9)
        assert first.headers["x-decoder"] == again.headers["x-decoder"]
        seen.add(first.headers["x-decoder"])
    assert seen == {"0", "1"}


def test_a_decoder_without_room_leaves_the_conversation_to_the_next(address: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: ask(address, ["The same?"], seed=seed, max_tokens=60), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-decoder"] for answer in answers} == {"0", "1"}


def test_errors_pass_as_the_server_makes_them(address: str) -> None:
    refused = httpx.post(f"{address}/v1/chat/completions", json={"model": "tiny", "messages": []}, timeout=60)
    assert refused.status_code == 400
    assert "error" in refused.json()
    assert httpx.get(f"{address}/v1/models", timeout=60).json()["data"][0]["id"] == "tiny"
    assert httpx.post(f"{address}/v1/chat/completions", content=b"x" * 2**21, timeout=60).status_code == 413


def test_a_killed_decoder_is_replaced_and_requests_go_on(address: str) -> None:
    before = text(ask(address, ["What do you like?"]))
    [victim, other] = decoders()
    victim.kill()
    for i in range(6):  # of both decoders
        wait(partial(lambda i: ask(address, [f"Question {i}?"], max_tokens=2).status_code == 200, i))
    wait(lambda: len(decoders()) == 2 and victim not in decoders())
    assert other in decoders()
    assert text(ask(address, ["What do you like?"])) == before


async def test_a_decoder_of_another_number_takes_the_models_of_that_number() -> None:
    other = str(Path(cards.__file__).parent / "tiny" / "lm")  # the same model by another name
    settings = ray_serve.Settings(models=["tiny", other], rewards=["tiny"], loading={"slots": 4}, server={"api_keys": ["k"]})
    decoder = ray_serve.DecoderReplica.func_or_class(settings)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive()).get("body", b"")
        async for message in decoder.respond({name: scope[name] for name in ray_serve.SCOPE_KEYS if name in scope}, body):
            await send(message)

    async def number(rank: int) -> None:
        await decoder.reconfigure(None, ray_serve.ReplicaRank(rank=rank, node_rank=0, local_rank=rank))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://decoder", headers=KEY) as client:
        await number(3)
        gate = decoder.app.state.service.gate
        begun = asyncio.create_task(client.post("/v1/completions", json={"prompt": "What a", "max_tokens": 60, "seed": 1}))
        while not gate.running:
            await asyncio.sleep(0.001)
        await number(0)
        later = await client.get("/v1/models")
        assert (later.json()["data"][0]["id"], later.headers["x-decoder"]) == ("tiny", "0")
        answer = await begun
        assert (answer.json()["model"], answer.headers["x-decoder"]) == ("lm", "3")  # no path is shown
        kept = decoder.app
        await number(2)
        assert decoder.app is kept
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, root_path="/lm"), base_url="http://decoder") as client:
        assert (await client.get("/lm/health")).status_code == 200  # under Ray's route_prefix
        assert (await client.get("/lm/v1/models")).status_code == 401
        assert (await client.get("/lm/v1/models", headers=KEY)).json()["data"][0]["id"] == "tiny"


def test_the_configuration_is_one_of_this_application() -> None:
    path = Path(__file__).parents[2] / "deploy" / "ray-serve.yaml"
    [found] = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text())).applications
    made = ray_serve.app(found.args)
    assert found.import_path == "cards.integrations.ray_serve:app"
    assert made._bound_deployment.name == "Front"
    assert {deployment.name for deployment in found.deployments} == {"Front", ray_serve.DecoderReplica.name}
    deadline = ServerOptions(**found.args["server"]).deadline
    for given, own in zip(
        found.deployments, (ray_serve.Front, ray_serve.DecoderReplica), strict=True
    ):  # removed ones can finish
        assert given.graceful_shutdown_timeout_s == own._deployment_config.graceful_shutdown_timeout_s > deadline


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_beginning_is_what_later_turns_do_not_change(role: str) -> None:
    turns = [
        {"role": role, "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    key = ray_serve.conversation_key(json.dumps({"messages": turns[:2]}).encode())
    assert key == ray_serve.conversation_key(json.dumps({"messages": turns, "seed": 3}).encode()) != ""
    turns[0]["content"] = "Be short."
    assert ray_serve.conversation_key(json.dumps({"messages": turns}).encode()) != key
    assert ray_serve.conversation_key(b'{"prompt": "a"}') != ray_serve.conversation_key(b'{"prompt": "b"}')
    for body in (b"", b"[", b"[]", b"{}", b'{"messages": 3}'):
        assert ray_serve.conversation_key(body) == ray_serve.conversation_key(body)

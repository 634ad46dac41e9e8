"""Decoders come and go with the load, and clients that leave free what they held."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from helpers.model_server import running
from helpers.random_models import language_model, word_tokenizer
from helpers.ray_cluster import cluster, ray_serve, serve, wait
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")]
LONG = 30_000  # tokens: minutes
SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0,
    "downscale_delay_s": 1,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 1,
}


class Scores:
    """A reward server that lets everybody wait while it is `held`."""

    def __init__(self) -> None:
        self.held = False
        self.app = FastAPI()
        self.app.post("/score")(self.score)

    async def score(self, body: dict[str, Any]) -> dict[str, list[float]]:
        while self.held:
            await asyncio.sleep(0.01)
        return {"rewards": [0.0] * len(body["responses"])}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An LM whose answers never end by themselves."""
    model, tokenizer = language_model("llama"), word_tokenizer()
    model.config.max_position_embeddings = 2 * LONG
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token = None
    folder = tmp_path_factory.mktemp("endless")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scores() -> Scores:
    return Scores()


@pytest.fixture(scope="module")
def address(endless: str, scores: Scores) -> Iterator[str]:
    """Decoders that scale, around these models."""
    with running(scores.app) as reward:
        settings = ray_serve.Settings(
            models=[endless],
            rewards=[f"{reward}/score"],
            settings={"target": 0.0},
            loading={"slots": 4, "context": 2 * LONG},
            server={"name": "tiny", "deadline": 900, "limit_tokens": LONG},
        )
        decoders = ray_serve.DecoderReplica.options(autoscaling_config=SCALING, max_ongoing_requests=4)
        with cluster(ray_serve.Front.bind(settings, decoders.bind(settings))) as found:
            yield found


def decoders() -> dict[str, int]:
    """How many there are in each state."""
    states = serve.status().applications["default"].deployments["Decoder"].replica_states
    return {str(state): count for state, count in states.items()}


def metric(address: str, name: str, **labels: str) -> float:
    """Of the only decoder."""
    families = text_string_to_metric_families(httpx.get(f"{address}/metrics", timeout=300).text)
    samples = [sample for family in families for sample in family.samples]
    return sum(one.value for one in samples if one.name == f"cards_{name}" and labels.items() <= one.labels.items())


def complete(address: str, number: int) -> httpx.Response:
    body = {"prompt": f"w{number + 2}", "max_tokens": 12, "seed": number}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=600)


def left(address: str) -> float:
    return metric(address, "requests_total", method="vanilla", outcome="left")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(address: str, stream: bool) -> None:
    before = left(address)
    where = urlsplit(address)
    client = http.client.HTTPConnection(str(where.hostname), where.port, timeout=300)
    body = {"prompt": "w3 w4", "max_tokens": LONG, "stream": stream, "cards": {"method": "vanilla"}}
    client.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    with contextlib.ExitStack() as opened:
        opened.callback(client.close)
        if stream:
            answer = opened.enter_context(client.getresponse())
            assert answer.readline().startswith(b"data: ")
        wait(lambda: metric(address, "rows_in_use") == 1)
    wait(lambda: metric(address, "rows_in_use") == 0)
    wait(lambda: left(address) == before + 1)
    assert metric(address, "running_answers") == 0
    drawn = metric(address, "lm_decoded_tokens_total", method="vanilla")
    assert metric(address, "lm_wasted_tokens_total", method="vanilla") == drawn > 0  # nobody kept any of it


def test_decoders_come_and_go_with_the_load(address: str, scores: Scores) -> None:
    wait(lambda: decoders() == {"RUNNING": 1})
    scores.held = True
    with ThreadPoolExecutor(12) as pool:
        try:
            asked = [pool.submit(complete, address, i) for i in range(12)]
            wait(lambda: decoders() == {"RUNNING": 3})
            assert not any(future.done() for future in asked)
        finally:
            scores.held = False
        answers = [future.result() for future in asked]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-decoder"] for answer in answers}) > 1
    few: list[httpx.Response] = []

    def alone_after_an_answer() -> bool:
        few.append(complete(address, len(few)))
        return decoders() == {"RUNNING": 1}

    wait(alone_after_an_answer)
    assert {answer.status_code for answer in few} == {200}
    wait(lambda: complete(address, 0).headers["x-decoder"] == "0")

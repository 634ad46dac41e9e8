"""Clients set the weights of the parts of a reward within the bounds of the operator, and r* follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.mock_models import mock
from helpers.running_server import Running, serving

from cards import CARDS, Decoder
from cards.errors import SettingError
from cards.rewards import FunctionReward, Minimum, WeightedSum
from cards.rewards.weights import PartStatistics
from cards.serve.app import make_app
from cards.serve.options import ServerOptions
from cards.serve.responses import ChatCompletion, Completion, ModelList
from cards.serve.weights import ClientWeights

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
BOUNDS = {"helpful": (-2.0, 2.0), "brief": (-1.0, 1.0)}
STATISTICS = PartStatistics((2.0, -1.0), ((1.0, -0.2), (-0.2, 0.5)))
FIXED: dict[str, Any] = {"width": 1}
BODY: dict[str, Any] = {"prompt": "abc", "max_tokens": 12, "seed": 4}


async def counts_a(prompt: str, response: str) -> float:
    return float(response.count("a"))


async def shortness(prompt: str, response: str) -> float:
    return -0.25 * len(response)


def reward(statistics: PartStatistics | None = STATISTICS) -> WeightedSum:
    parts = [FunctionReward(counts_a, name="/srv/helpful.py:score"), FunctionReward(shortness, name="/srv/brief.py:score")]
    return WeightedSum(parts, [1.0, 1.0], statistics=statistics)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    total = reward()
    with serving(mock(), total, CARDS(target=1.5, **FIXED), weights=ClientWeights(total, BOUNDS)) as running:
        yield running


def post(running: Running, weights: Any, **cards: Any) -> Any:
    return running.post(json=BODY | {"cards": {"weights": weights, **cards}})


def test_a_response_is_that_of_the_decoder_with_the_weights(running: Running) -> None:
    default = running.post(json=BODY).json()
    assert default["cards"]["weights"] == {"helpful": 1.0, "brief": 1.0}
    total = WeightedSum(reward().rewards, [1.0, 1.0], names=tuple(BOUNDS), statistics=STATISTICS)
    for weights in ({"helpful": 2.0}, {"helpful": 0.5, "brief": -1.0}, {"brief": 1.0}):
        answer = post(running, weights).json()
        decoder = Decoder(running.service.engine, total, CARDS(target=1.5, **FIXED)).with_weights(weights)
        expected = decoder("abc", max_tokens=12, seed=4)
        assert answer["choices"][0]["text"] == expected.text
        assert answer["choices"][0]["cards"]["reward"] == pytest.approx(expected.reward)
        thresholds = [segment["threshold"] for segment in answer["choices"][0]["cards"]["segments"]]
        assert thresholds == pytest.approx([segment.threshold for segment in expected.segments])
        assert answer["cards"]["weights"] == {"helpful": 1.0, "brief": 1.0} | weights
        assert Completion.model_validate(answer).model_dump(exclude_unset=True) == answer


def test_every_method_takes_the_weights(running: Running) -> None:
    few = post(running, {"helpful": -2.0}, method="best-of-n", settings={"n": 16}).json()
    many = post(running, {"helpful": 2.0}, method="best-of-n", settings={"n": 16}).json()
    assert many["choices"][0]["text"].count("a") > few["choices"][0]["text"].count("a")
    nested = post(running, {"helpful": 2.0}, method="best-of-n", settings={"n": 2, "inner": "(cards:width=1)"})
    assert nested.status_code == 200
    given = post(running, {"helpful": 2.0}, settings={"target": 0.25})
    assert given.json()["choices"][0]["cards"]["segments"][-1]["threshold"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"helpful": 2.5}, "between -2 and 2"),
        ({"helpfull": 1.0}, "'helpful'"),
        ({"/srv/helpful.py:score": 1.0}, "Known: brief, helpful"),
        ({"helpful": 0.0, "brief": 0.0}, "differ from 0"),
        ({"helpful": True}, "number"),
        ({"helpful": "1"}, "number"),
        ([1.0, 1.0], "dictionary"),
    ],
)
def test_other_weights_are_refused(running: Running, weights: Any, words: str) -> None:
    answer = post(running, weights)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_clients_see_names_and_bounds_but_no_files(running: Running) -> None:
    listed = running.get("/v1/models").json()
    [model] = listed["data"]
    assert model["cards"]["reward"] == "helpful + brief"
    assert model["cards"]["weights"]["brief"] == {"default": 1.0, "at_least": -1.0, "at_most": 1.0}
    assert ModelList.model_validate(listed).model_dump(exclude_unset=True) == listed
    chat = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 6, "cards": {"weights": {"helpful": 2.0}}}
    answer = running.post("/v1/chat/completions", json=chat).json()
    assert ChatCompletion.model_validate(answer).model_dump(exclude_unset=True) == answer
    assert "srv" not in str(listed) + str(answer) + running.get("/openapi.json").text


def test_without_statistics_a_client_sets_the_target() -> None:
    total = reward(None)
    with serving(mock(), total, CARDS(target=1.5), weights=ClientWeights(total, BOUNDS)) as running:
        assert post(running, {"helpful": 1.0}).status_code == 200  # these are the defaults
        refused = post(running, {"helpful": 2.0})
        assert refused.status_code == 400
        assert "target" in refused.json()["error"]["message"]
        assert "srv" not in refused.text
        assert post(running, {"helpful": 2.0}, settings={"target": 1.0}).status_code == 200


def test_a_server_without_bounds_has_no_weights() -> None:
    with serving(mock(), reward(), CARDS(target=1.5)) as running:
        assert post(running, {"helpful": 1.0}).status_code == 400
        assert "weights" not in running.get("/v1/models").json()["data"][0]["cards"]


@pytest.mark.parametrize(
    ("total", "bounds", "words"),
    [
        (Minimum(reward().rewards), BOUNDS, "sum"),
        (None, BOUNDS, "sum"),
        (reward(), {"helpful": (0.0, 1.0)}, "1 weights for 2 rewards"),
        (reward(), {"helpful": (0.0, 0.5), "brief": (0.0, 1.0)}, "default 1"),
        (reward(), {"help ful": (0.0, 1.0), "brief": (0.0, 1.0)}, "letters"),
    ],
)
def test_bounds_are_checked_when_the_server_starts(total: Any, bounds: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        ClientWeights(total, bounds)
    assert make_app(mock(), reward(), CARDS(target=1.5), ServerOptions())

"""Several entries of model, reward and method behind one server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving_entries, until

from cards.cli.serve_models import LoadedModels
from cards.errors import CardsError, SettingError, UnknownNameError
from cards.methods import CARDS, BestOfN, Vanilla
from cards.placement import Placement
from cards.profile import Profile
from cards.rewards import WeightedSum
from cards.serve.catalog import Catalog
from cards.serve.config import ModelEntry, ServerConfig, parse_weight
from cards.serve.options import ServerOptions
from cards.serve.service import Entry
from cards.serve.tracing import Tracing

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
KNOWN = ("port", "max_queue", "host")


@pytest.fixture
def reward() -> Switch:
    return Switch()


@pytest.fixture
def running(reward: Switch) -> Iterator[Running]:
    engine, other = mock(), mock()
    entries = [
        Entry("careful", engine, reward, CARDS_IN_THREES, ("gpt-4o", "org/model")),
        Entry("plain", engine, None, Vanilla(), max_tokens=5),
        Entry("other", other, reward, BestOfN(n=2)),
    ]
    with serving_entries(entries, max_running=2, max_queue=1) as running:
        yield running
        reward.held = False


def post(running: Running, **more: Any) -> Any:
    return running.post(json={"prompt": "abc", "max_tokens": 4, "seed": 1, **more})


def test_a_request_names_an_entry_or_an_alias(running: Running) -> None:
    methods = {"careful": "cards", "gpt-4o": "cards", "org/model": "cards", "plain": "vanilla", "other": "best-of-n"}
    for name, method in methods.items():
        answer = post(running, model=name).json()
        assert answer["cards"]["method"] == method
        assert answer["model"] == {"gpt-4o": "careful", "org/model": "careful"}.get(name, name)
    assert post(running).json()["model"] == "careful"
    assert running.post(json={"model": "plain", "prompt": "abc"}).json()["usage"]["completion_tokens"] == 5
    assert running.post("/tokenize", json={"model": "gpt-4o", "prompt": "abc"}).json()["count"] == 3
    missing = post(running, model="none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    listed = running.get("/v1/models").json()["data"]
    assert [(model["id"], model["root"]) for model in listed] == [
        (name, name if name in ("careful", "plain", "other") else "careful") for name in methods
    ]
    assert running.get("/v1/models/org/model").json()["cards"]["method"] == "cards"
    assert running.metric("cards_requests_total", model="plain", outcome="ok") == 2


def test_entries_share_the_slots_of_their_engine(running: Running, reward: Switch) -> None:
    reward.held = True
    opened = [running.send({"prompt": "abc", "model": "careful", "stream": True}) for _ in range(2)]
    until(lambda: running.metric("cards_running_answers") == 2)
    waiting = running.send({"prompt": "abc", "model": "plain", "max_tokens": 4})
    until(lambda: running.metric("cards_queue_depth") == 1)
    assert post(running, model="plain").status_code == 429
    assert running.get("/ready").status_code == 503
    reward.held = False
    assert b"200 OK" in waiting.recv(4096)
    for one in (*opened, waiting):
        one.close()
    until(lambda: running.metric("cards_running_answers") == 0)
    assert post(running, model="other").status_code == 200


def test_names_are_unique() -> None:
    entries = [Entry("one", mock(), None, Vanilla()), Entry("two", mock(), None, Vanilla(), ("one",))]
    with pytest.raises(SettingError, match="'one' occurs twice"):
        Catalog(entries, ServerOptions(), Tracing())


CONFIG = """
port: 0
max-queue: 7
models:
  - name: careful
    aliases: [gpt-4o]
    settings: {beta: 0.5, boundary: "fixed:8", top-k: null}
  - name: mixed
    reward: tiny + length:5-40
    profile: tuned.json
    weights: {helpful: [0, 2], short: [0, 4.5]}
  - name: plain
    reward: none
    method: vanilla
keys:
  - {name: alice, key: alice-key, requests: 3}
  - {name: bob, variable: BOB_KEY}
"""


def written(folder: Path, text: str = CONFIG) -> Path:
    path = folder / "server.yaml"
    path.write_text(text)
    return path


def test_a_file_has_options_models_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOB_KEY", "bob-key")
    config = ServerConfig.read(written(tmp_path), KNOWN)
    assert config.options == {"port": 0, "max_queue": 7}
    assert config.models[0].settings == {"beta": "0.5", "boundary": "fixed:8", "top_k": "none"}
    assert (config.models[1].profile, config.models[1].weights) == (
        tmp_path / "tuned.json",
        {"helpful": (0.0, 2.0), "short": (0.0, 4.5)},
    )
    assert [(key.name, key.secret, key.requests) for key in config.keys] == [
        ("alice", "alice-key", 3),
        ("bob", "bob-key", None),
    ]


def test_models_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOB_KEY", "bob-key")
    statistics = {"mean": [1.0, 0.5], "covariance": [[1.0, 0.0], [0.0, 0.25]]}
    names = ("tiny", "tiny + length:5-40")
    Profile(*names, {"target": 2.0}, max_tokens=33, parts=statistics).write(tmp_path / "tuned.json")
    loaded = LoadedModels(Placement())
    entries = loaded.load(loaded.choose(ServerConfig.read(written(tmp_path), KNOWN).models), lambda chats: None)
    careful, mixed, plain = entries
    assert careful.engine is mixed.engine is plain.engine
    assert isinstance(mixed.reward, WeightedSum)
    assert mixed.reward.rewards[0] is careful.reward
    assert plain.reward is None
    assert careful.method == CARDS(beta=0.5, boundary=careful.method.boundary, top_k=None)  # type: ignore[attr-defined]
    assert (mixed.max_tokens, mixed.method.target) == (33, 2.0)  # type: ignore[attr-defined]
    assert mixed.weights is not None
    changed, method = mixed.weights.apply(mixed.method, {"short": 4.0})
    assert method.target == pytest.approx(3.0 + 0.5 * (1 + 16 * 0.25) ** 0.5 / 1.25**0.5)  # type: ignore[attr-defined]
    assert changed.name == "helpful + short"
    asyncio.run(loaded.aclose())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prt: 1", "'port'"),
        ("models: {name: x}", "must be a list"),
        ("models: [{model: tiny}]", "needs a name"),
        ("models: [{name: x, rewards: y}]", "'reward'"),
        ("models: [{name: x, aliases: y}]", "aliases"),
        ("models: [{name: x, max_tokens: true}]", "max_tokens"),
        ("models: [{name: x, weights: {a: 1}}]", "lowest and its highest"),
        ("models: [{name: x, settings: [1]}]", "settings"),
        ("models: [{name: 5}]", "must be text"),
        ("keys: [{name: a}]", "either key or variable"),
        ("keys: [{name: a, variable: NO_SUCH_VARIABLE}]", "set NO_SUCH_VARIABLE"),
        ("keys: [{name: a, key: 5}]", "in quotes"),
        ("keys: [{name: a, key: b, request: 1}]", "'requests'"),
        ("keys: [{name: a, key: b, requests: x}]", "whole number"),
        ("[1, 2]", "mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_named_before_models_are_loaded(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CardsError, match=words):
        ServerConfig.read(written(tmp_path, text), KNOWN)


def test_wrong_entries_are_named_before_models_are_loaded(tmp_path: Path) -> None:
    loaded = LoadedModels(Placement())
    for entry, error in (
        (ModelEntry(name="x", method="crads"), UnknownNameError),
        (ModelEntry(name="x", settings={"bta": "1"}), UnknownNameError),
        (ModelEntry(name="x", profile=tmp_path / "none.json"), SettingError),
    ):
        with pytest.raises(error):
            loaded.choose([entry])
    with pytest.raises(SettingError):
        ServerConfig.read(tmp_path / "none.yaml", KNOWN)
    assert parse_weight("brief=0:1.5") == ("brief", (0.0, 1.5))
    for wrong in ("brief", "brief=1", "brief=a:b"):
        with pytest.raises(SettingError, match="brief"):
            parse_weight(wrong)

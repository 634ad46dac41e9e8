"""The data that the server sends to the page: models, methods and settings, and runs with their traces and inspections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving, serving_entries, until

from cards import CARDS, Decoder
from cards.acceptance import Schedule, Verdict
from cards.boundaries import Entropy
from cards.errors import RewardError
from cards.methods import BestOfN, Vanilla
from cards.methods.search.smc import SMC
from cards.registry import make_method, method_classes
from cards.serve.inspection import entropy_rule
from cards.serve.playground.offer import describe, visible_settings
from cards.serve.service import Entry

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
RUN = "/playground/v1/completions"
BODY: dict[str, Any] = {"prompt": "abc", "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def page() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True) as running:
        yield running


def run(running: Running, **fields: Any) -> dict[str, Any]:
    """Return the first choice of a run with a trace and an inspection."""
    about = {"trace": True, "inspect": True, **fields.pop("cards", {})}
    answer = running.post(RUN, json={**BODY, **fields, "cards": about})
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice | {"usage": answer.json()["usage"]}


def test_every_method_is_offered_with_its_family_and_sentence(page: Running) -> None:
    offered = page.get("/playground/offer").json()
    [model] = offered["models"]
    assert (model["name"], model["method"], model["target"], model["reward"]) == ("mock", "cards", 0.0, "switch")
    known = {method["name"]: method for method in model["methods"]}
    assert known.keys() == page.service.methods.offered.keys()
    for name, method in known.items():
        cls = method_classes()[name]
        assert (method["family"], method["summary"]) == (cls.family, cls.summary)
        assert cls.family in offered["families"]


def test_settings_start_with_the_values_of_the_server() -> None:
    settings = {s.name: describe(s) for s in visible_settings(CARDS(beta=0.25, max_rejections=99, top_k=None))}
    assert (settings["beta"]["default"], settings["top_k"]["default"]) == ("0.25", "none")
    assert settings["beta"]["range"] == [0.05, 3, 0.05] or settings["beta"]["range"] == (0.05, 3, 0.05)
    assert settings["acceptance"]["words"] == ["soft", "hard"]
    assert settings["boundary"]["choices"][:2] == ["entropy", "fixed:8"]


def test_models_and_what_a_server_keeps_to_itself_are_not_offered() -> None:
    names = {setting.name for name in method_classes() for setting in visible_settings(make_method(name))}
    assert not names & {"proposer", "guide", "guides", "aligned", "reference", "amateur", "process", "pattern"}


def test_all_models_of_the_server_are_offered() -> None:
    engine = mock()
    entries = [Entry("one", engine, Switch(), CARDS_IN_THREES), Entry("two", engine, None, Vanilla(), aliases=("2",))]
    with serving_entries(entries, playground=True) as running:
        models = running.get("/playground/offer").json()["models"]
        assert [(model["name"], model["reward"], model["method"]) for model in models] == [
            ("one", "switch", "cards"),
            ("two", None, "vanilla"),
        ]
        assert "best-of-n" not in {method["name"] for method in models[1]["methods"]}


def test_a_run_is_a_request_to_the_api(page: Running) -> None:
    direct = page.post(json=BODY).json()
    assert run(page)["text"] == direct["choices"][0]["text"]
    chat = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}
    assert page.post("/playground/v1/chat/completions", json=chat).json()["object"] == "chat.completion"
    wrong = page.post(RUN, json={**BODY, "cards": {"settings": {"max_rejections": 10**6}}})
    assert (wrong.status_code, "at most" in wrong.json()["error"]["message"]) == (400, True)


def test_verdicts_follow_from_what_the_trace_records(page: Running) -> None:
    """So the page can tell which verdicts other settings would change."""
    trace = run(page, cards={"settings": {"target": 2.5}})["cards"]["trace"]
    scored = {(e["position"], e["candidate"]): e for e in trace if e["event"] == "scored"}
    verdict, kept = Verdict(CARDS_IN_THREES.beta), 0
    outcomes = [e for e in trace if e["event"] in ("accepted", "rejected")]
    assert {e["event"] for e in outcomes} == {"accepted", "rejected"}
    for event in outcomes:
        test = scored[event["position"], event["candidate"]]
        threshold = Schedule(**test["schedule"]).threshold(kept + event["tokens"])
        assert threshold == event["threshold"]
        assert verdict.passes(event["reward"], threshold, test["u"]) == (event["event"] == "accepted")
        kept += event["tokens"] * (event["event"] == "accepted")


def test_the_trace_says_which_candidate_continues_which(page: Running) -> None:
    trace = run(page, cards={"method": "smc", "settings": {"boundary": "fixed:3", "beta": 0.2}})["cards"]["trace"]
    parents = {(e["position"], e["candidate"]): e["parent"] for e in trace if e["event"] == "proposed"}
    assert all((parent is None) == (key[0] == 0) for key, parent in parents.items())
    assert len({tuple(parent) for (position, _), parent in parents.items() if position == 1}) > 1
    path = [(e["position"], e["candidate"]) for e in trace if e["event"] == "accepted"]
    assert [parents[key] for key in path[1:]] == [list(key) for key in path[:-1]]


def test_the_inspection_has_the_entropy_that_ended_each_segment(tiny: Running) -> None:
    body = {"messages": [{"role": "user", "content": "What makes a good film?"}], "seed": 1, "max_tokens": 40}
    about = {"inspect": True, "trace": True, "settings": {"entropy_threshold": 3.0}}
    choice = tiny.post("/v1/chat/completions", json={**body, "cards": about}).json()["choices"][0]
    found, segments = choice["cards"]["inspection"], choice["cards"]["segments"]
    assert found["rule"] == {"threshold": 3.0, "minimum": 4, "maximum": 64, "measure": "entropy"}
    assert "".join(found["tokens"]) == choice["message"]["content"]
    assert len(found["tokens"]) == len(found["entropies"]) == sum(segment["tokens"] for segment in segments)
    end, checked = 0, 0
    for segment in segments:
        end += segment["tokens"]
        if segment["entropy"] is not None:
            checked += 1
            assert found["entropies"][end] == pytest.approx(segment["entropy"], abs=1e-3)
    assert checked


def test_an_inspection_is_not_part_of_the_usage(page: Running) -> None:
    about = {"method": "vanilla"}
    with_it, without = (run(page, cards=about | {"inspect": inspect}) for inspect in (True, False))
    assert with_it["cards"]["inspection"]["reward"] == float(with_it["text"].count("a"))
    assert with_it["cards"]["reward"] is None
    assert "inspection" not in without["cards"]
    timed = {name for name in without["usage"] if "seconds" in name} | {"prompt_tokens_details", "lm_cached_tokens", "flops"}
    timed |= {"lm_prefill_tokens"}
    assert {k: v for k, v in with_it["usage"].items() if k not in timed} == {
        k: v for k, v in without["usage"].items() if k not in timed
    }


def test_a_reward_that_fails_in_the_inspection_does_not_cost_the_response() -> None:
    reward = Switch()
    reward.broken = True
    with serving(mock(), reward, CARDS_IN_THREES, playground=True) as running:
        choice = run(running, cards={"method": "vanilla"})
        assert len(choice["text"]) == 12
        assert "inspection" not in choice["cards"]
    with pytest.raises(RewardError):
        Decoder(mock(), reward, CARDS_IN_THREES)("abc", max_tokens=3)


@pytest.mark.parametrize(
    ("method", "threshold"),
    [(CARDS(), 3.0), (CARDS(entropy_threshold=2.5), 2.5), (SMC(), 3.0), (CARDS_IN_THREES, None), (BestOfN(), None)],
    ids=["suggested", "given", "smc", "fixed", "best-of-n"],
)
def test_the_rule_is_that_of_methods_that_end_segments_by_entropy(method: Any, threshold: float | None) -> None:
    rule = entropy_rule(Decoder(mock(), Switch(), method))
    assert (None if rule is None else rule.threshold) == threshold
    assert rule is None or isinstance(rule, Entropy)
    inner = entropy_rule(Decoder(mock(), Switch(), BestOfN(inner=CARDS(entropy_threshold=1.5))))
    assert inner is not None
    assert inner.threshold == 1.5


def test_runs_count_in_metrics_and_limits_as_requests_do() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True, api_keys=("key",), limit_key_requests=2) as running:
        client = httpx.Client(base_url=running.url, timeout=60)
        client.post("/login", data={"key": "key"})
        bearer = {"Authorization": "Bearer key"}
        assert client.post("/v1/completions", json=BODY, headers=bearer).status_code == 200
        assert client.post(RUN, json=BODY).status_code == 200
        refused = client.post(RUN, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_requests")
        until(lambda: running.metric("cards_requests_total", outcome="ok") == 2)
        client.close()


def test_a_run_that_is_left_frees_its_rows() -> None:
    reward = Switch()
    with serving(mock(), reward, CARDS_IN_THREES, playground=True) as running:
        reward.held = True
        opened = running.send({**BODY, "stream": True, "max_tokens": 60}, RUN)
        until(lambda: running.service.engine.requests or reward.asked)
        opened.close()
        assert_free(running)
        reward.held = False
        until(lambda: running.metric("cards_requests_total", outcome="left") == 1)

"""Whatever fits the OpenAPI document, and much that does not, is answered without a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, assert_free, serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cards.errors import CardsError
from cards.registry import method_class, method_classes
from cards.serve.app import make_app
from cards.serve.options import ServerOptions
from cards.serve.responses import ChatCompletion, Completion, ErrorBody, ModelBody, ModelList

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
LIMITS: dict[str, Any] = {"limit_tokens": 16, "max_tokens": 8, "deadline": 0.3, "limit_body": 50_000}
CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance, status_code_conformance]
document = schemathesis.openapi.from_asgi("/openapi.json", make_app(mock(), Switch(), CARDS_IN_THREES, ServerOptions(**LIMITS)))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(mock(), Switch(), CARDS_IN_THREES, **LIMITS) as running:
        yield running
        assert_free(running)


@document.parametrize()
@settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_the_server_fail(running: Running, case: schemathesis.Case[Any]) -> None:
    response = case.call(base_url=running.url)
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/completions", {"prompt": "abc", "logprobs": 0}, Completion),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}], "logprobs": True}, ChatCompletion),
    ],
)
@pytest.mark.parametrize("trace", [False, True])
def test_the_documented_schema_has_every_field_of_a_response(
    running: Running, path: str, body: dict[str, Any], model: type[BaseModel], trace: bool
) -> None:
    answer = running.post(path, json={**body, "cards": {"trace": trace}}).json()
    assert model.model_validate(answer).model_dump(exclude_unset=True) == answer  # undeclared fields would be missing


def test_models_and_errors_have_the_documented_schema(running: Running) -> None:
    for path, model in (("/v1/models", ModelList), ("/v1/models/mock", ModelBody), ("/v1/models/none", ErrorBody)):
        answer = running.get(path).json()
        assert model.model_validate(answer).model_dump(exclude_unset=True) == answer


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 7, 1024, 10**30, -(10**30)]),
    st.sampled_from([-1.0, -0.0, 0.0, 1e-320, 1e-9, 0.5, 1.0, 2.0, 1e9, 1e308]),
    st.sampled_from(
        ["", "auto", "soft", "hard", "mcp", "fixed:3", "fixed:0", "punctuation", "step:x", "whole", "best", "\ud800"]
    ),
    st.lists(st.sampled_from([0, 1, 5, -1, 1.5, "x"]), max_size=3),
)


def settings_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    names = sorted(method_class(name).__dataclass_fields__)  # type: ignore[attr-defined]
    return st.dictionaries(st.sampled_from(names), ODD, min_size=1, max_size=2)


@pytest.mark.parametrize("name", method_classes())
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_every_setting_is_taken_or_refused(running: Running, name: str, data: st.DataObject) -> None:
    with suppress(CardsError):
        running.service.decoder(name, data.draw(settings_of(name)))


@pytest.mark.parametrize("name", method_classes())
@settings(max_examples=4, derandomize=True, deadline=None)
@given(data=st.data())
def test_no_setting_makes_the_server_fail(running: Running, name: str, data: st.DataObject) -> None:
    cards = {"method": name, "settings": data.draw(settings_of(name)), "deadline": 0.1}
    body = {"prompt": "abc", "max_tokens": 6, "seed": 1, "cards": cards}
    answer = running.post(content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400), (cards, answer.text)

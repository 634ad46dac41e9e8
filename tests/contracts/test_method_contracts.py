"""Every registered method passes the contract."""

from __future__ import annotations

from typing import Any

import pytest

from cards.methods.base import Method, setting_fields
from cards.registry import METHODS, make_method, method_class
from cards.testing import MethodContract, MockReward, random_engine


def with_mock_models(name: str, **settings: Any) -> Method:
    """The method, with mocks for the models that its defaults name."""
    models: dict[str, Any] = {
        "engine": random_engine(3),
        "engines": (random_engine(3),),
        "reward": MockReward(lambda text: text.count("b") - 1.0),
    }
    named = {
        f.name: models[f.metadata["loads"]] for f in setting_fields(method_class(name)) if f.default and "loads" in f.metadata
    }
    return make_method(name, **named | settings)


class TestEveryMethod(MethodContract):
    @pytest.fixture(params=[name for name in METHODS if name != "skip-decoding"])
    def method(self, request: pytest.FixtureRequest) -> Method:
        return with_mock_models(request.param)


OTHER_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("cards", {"width": 3, "acceptance": "hard", "min_segment": 1, "entropy_threshold": 1.0}),
    ("cards", {"quantile": 0.5, "pilots": 3}),
    ("tree-bon", {"guide": MockReward(lambda text: text.count("b"))}),
    ("self-consistency", {"pattern": "[abc]", "beta": 1.0}),
    ("genarm", {"guides": (random_engine(3), random_engine(4)), "weights": (0.5, 0.5)}),
    ("vanilla", {"chunk": 2}),
]


class TestMethodsWithOtherSettings(MethodContract):
    @pytest.fixture(params=OTHER_SETTINGS, ids=lambda param: f"{param[0]}-{next(iter(param[1]))}")
    def method(self, request: pytest.FixtureRequest) -> Method:
        return with_mock_models(request.param[0], **request.param[1])

"""Every registered method passes the contract."""

from __future__ import annotations

from typing import Any

import pytest

from cards.methods.base import Method
from cards.registry import make_method, method_class, method_classes
from cards.settings import settings_of
from cards.testing import MethodContract, MockReward, random_engine


def with_mock_models(name: str, **settings: Any) -> Method:
    """The method, with mocks for the models that its defaults name."""
    models: dict[str, Any] = {
        "engine": random_engine(3),
        "engines": (random_engine(3),),
        "reward": MockReward(lambda text: text.count("b") - 1.0),
    }
    loads = {item.name: item.spec.loads for item in settings_of(method_class(name)).values() if item.default}
    named = {setting: models[kind] for setting, kind in loads.items() if kind}
    return make_method(name, **named | settings)


class TestEveryMethod(MethodContract):
    @pytest.fixture(params=list(method_classes()))
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

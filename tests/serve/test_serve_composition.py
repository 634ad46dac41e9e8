"""Clients may combine methods, within the limits of each and of all together."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.running_server import CHAT, Running

from cards import CARDS
from cards.engines.mixture import MixtureEngine
from cards.errors import CardsError, SettingError
from cards.methods import BestOfN, GenARM, Vanilla
from cards.serve.methods import OfferedMethods
from cards.testing import MockReward, random_engine

INNER = CARDS(target=0.5, max_rejections=4)


def offered(method: Any = INNER) -> OfferedMethods:
    return OfferedMethods(random_engine(), MockReward(), method, 1024)


@pytest.mark.parametrize("inner", ["(cards:beta=0.5)", "cards:beta=0.5", {"method": "cards", "settings": {"beta": 0.5}}])
def test_an_inner_method_has_the_settings_of_the_server_and_of_the_client(inner: Any) -> None:
    made = offered().make("best-of-n", {"n": 3, "inner": inner})
    assert made == BestOfN(n=3, inner=CARDS(target=0.5, max_rejections=4, beta=0.5))


def test_the_method_of_the_server_may_be_a_combination() -> None:
    methods = offered(BestOfN(n=2, inner=INNER))
    assert methods.make(None, {}) == BestOfN(n=2, inner=INNER)
    assert methods.make(None, {"n": 4, "temperature": 0.25}) == BestOfN(
        n=4, inner=CARDS(target=0.5, max_rejections=4, temperature=0.25)
    )
    assert methods.make(None, {"inner": None, "temperature": 0.25}) == BestOfN(n=2, temperature=0.25)
    assert methods.make(None, {"inner": "none"}) == BestOfN(n=2)
    assert methods.make("cards", {}).target == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "(cards:max_rejections=257)"}, "max_rejections must be at most 256"),
        ({"inner": {"method": "cards", "settings": {"max_rejections": 257}}}, "max_rejections must be at most 256"),
        ({"inner": "(cards:boundary=fixed:9999)"}, "boundary must be at most 1024"),
        ({"inner": "(self-consistency:pattern=a)"}, "pattern is set by the server"),
        ({"inner": "(genarm:guides=tiny)"}, "need models"),
        ({"inner": "(card)"}, "Did you mean 'cards'"),
        ({"inner": "(cards:bta=1)"}, "Did you mean 'beta'"),
        ({"inner": {"method": "cards", "settings": {"beta": "1"}}}, "beta"),
        ({"inner": {"name": "cards"}}, "an object with method and settings"),
        ({"inner": 3}, "an object with method and settings"),
        ({"inner": "(cards:beta=" + "1" * 600 + ")"}, "at most 512 characters"),
        ({"n": 9, "inner": "(best-of-n:n=8)"}, "at most 64 responses on this server, got 9 x 8"),
        ({"inner": "(mbr:n=1,inner=(mbr:n=1,inner=(vanilla)))"}, "at most 2 deep"),
        ({"inner": "(args)", "top_p": 0.5}, "top_p"),
    ],
    ids=str,
)
def test_limits_hold_for_inner_methods(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CardsError, match=message):
        offered().make("best-of-n", settings)


def test_deep_nesting_is_refused_before_it_is_parsed_further() -> None:
    text: Any = {"method": "mbr"}
    for _ in range(5000):
        text = {"method": "mbr", "settings": {"inner": text}}
    with pytest.raises(SettingError, match="deep"):
        offered().make("mbr", {"inner": text})


@pytest.mark.slow
def test_a_request_with_an_inner_method_is_answered(tiny: Running) -> None:
    settings = {"n": 2, "inner": "(cards:target=0.5)"}
    body = {
        "messages": CHAT,
        "max_tokens": 8,
        "seed": 1,
        "temperature": 0.7,
        "cards": {"method": "best-of-n", "settings": settings},
    }
    answer = tiny.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    assert choice["cards"]["method"] == "best-of-n" if "method" in choice.get("cards", {}) else choice["message"]["content"]


def test_a_mixture_is_served_like_any_engine() -> None:
    mixed = MixtureEngine(random_engine(), GenARM(guides=(random_engine(2),)))
    methods = OfferedMethods(mixed, MockReward(), Vanilla(), 1024)
    assert {"cards", "best-of-n", "args"} <= set(methods.listed)

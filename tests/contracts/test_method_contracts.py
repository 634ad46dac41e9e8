"""Every registered method passes the contract."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers.random_models import Pair, words

from cards import CARDS, Decoder, Engine, FixedLength, Method, Reward
from cards.grammar import Grammar
from cards.methods import RSD, STARS, BestOfN, ProxyTuning
from cards.registry import make_method, method_class, method_classes
from cards.rewards import ImplicitReward
from cards.settings import settings_of
from cards.testing import MethodContract, MockReward, random_engine


def some_b(text: str) -> float:
    return text.count("b") - 1.0


def with_models(name: str, engine: Engine, reward: Reward, **settings: Any) -> Method:
    """The method, with these models in place of those that its defaults name."""
    models: dict[str, Any] = {"engine": engine, "engines": (engine,), "reward": reward}
    loads = {item.name: item.spec.loads for item in settings_of(method_class(name)).values() if item.default}
    named = {setting: models[kind] for setting, kind in loads.items() if kind}
    return make_method(name, **named | settings)


# DoLa needs layers, which mocks lack. The others need tokens that the models of these tests do not have.
SPECIAL = frozenset({"dola", "spec-reason", "budget-forcing"})


class TestEveryMethod(MethodContract):
    @pytest.fixture(params=[name for name in method_classes() if name not in SPECIAL])
    def method(self, request: pytest.FixtureRequest) -> Method:
        return with_models(request.param, random_engine(3), MockReward(some_b))

    def test_segments_continue_a_word_of_a_grammar(self, decoder: Decoder) -> None:
        pytest.importorskip("llguidance")
        pattern = "(ab|ca){2,3}c"
        for result in self.results(decoder, max_tokens=60, grammar=Grammar.regex(pattern)):
            assert (re.fullmatch(pattern, result.text) is not None, result.finish_reason) == (True, "stop")


OTHER_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("cards", {"width": 3, "acceptance": "hard", "min_segment": 1, "entropy_threshold": 1.0}),
    ("cards", {"quantile": 0.5, "pilots": 3}),
    ("tree-bon", {"guide": MockReward(some_b)}),
    ("self-consistency", {"pattern": "[abc]", "beta": 1.0}),
    ("genarm", {"guides": (random_engine(3), random_engine(4)), "weights": (0.5, 0.5)}),
    ("vanilla", {"chunk": 2}),
    ("best-of-n", {"inner": CARDS(width=3, min_segment=1, entropy_threshold=1.0), "n": 3}),
    ("soft-best-of-n", {"inner": RSD(proposer=random_engine(3), boundary=FixedLength(maximum=3)), "n": 3}),
    ("pessimism", {"inner": STARS(block=3), "n": 2, "highest": 9.0, "beta": 0.1}),
    ("mbr", {"inner": ProxyTuning(tuned=random_engine(3), untuned=random_engine(4)), "n": 3}),
    ("self-certainty", {"power": 1.0, "pattern": "[abc]", "n": 4}),
    ("deepconf", {"window": 3, "chunk": 2, "warmup": 3, "n": 7, "pattern": "[abc]", "keep": 0.5}),
    ("adaptive-consistency", {"pattern": "[abc]", "window": 2}),
    ("particle-filtering", {"weights": "probability", "take": "sample", "boundary": FixedLength(maximum=3)}),
    ("particle-gibbs", {"particles": 3, "iterations": 3, "boundary": FixedLength(maximum=3)}),
    ("dvts", {"trees": 3, "children": 2, "boundary": FixedLength(maximum=3)}),
    ("prm-beam-search", {"process": MockReward(some_b), "boundary": FixedLength(maximum=3)}),
    ("budget-forcing", {"opening": "a", "closing": "b", "extend": "c", "least": 2, "most": 4}),
    ("budget-forcing", {"opening": "ab", "closing": "cb", "most": 3, "inner": CARDS(min_segment=1)}),
    ("spec-reason", {"process": MockReward(some_b), "boundary": FixedLength(maximum=3)}),
    ("best-of-poisson", {"inner": CARDS(min_segment=1), "mean": 2.0}),
    ("rbon-kl", {"inner": CARDS(min_segment=1), "n": 3}),
    ("self-consistency", {"inner": BestOfN(n=2, inner=CARDS(min_segment=1)), "n": 2, "pattern": "[abc]"}),
]


class TestMethodsWithOtherSettings(MethodContract):
    @pytest.fixture(params=OTHER_SETTINGS, ids=lambda param: f"{param[0]}-{next(iter(param[1]))}")
    def method(self, request: pytest.FixtureRequest) -> Method:
        name, settings = request.param
        return with_models(name, random_engine(3), MockReward(some_b), **settings)

    def test_responses_have_the_form_of_a_grammar(self, decoder: Decoder) -> None:
        if decoder.method.name == "budget-forcing":
            pytest.skip("The grammar applies to the answer alone.")
        super().test_responses_have_the_form_of_a_grammar(decoder)


@pytest.fixture(scope="module")
def lm(llama_float64: Pair) -> Engine:
    return llama_float64.engine(slots=16)


@pytest.fixture(scope="module")
def other_lm(gpt2_float64: Pair) -> Engine:
    return gpt2_float64.engine(slots=16)


@pytest.fixture(scope="module")
def reward_model(llama_float64: Pair) -> Reward:
    return llama_float64.reward(slots=16, target=1.0)


@pytest.mark.slow
class TestEveryMethodOnALocalModel(MethodContract):
    """With the cache, the scheduler and a reward model that reads tokens."""

    prompts = tuple(words([7, 8, 9, 10 + i]) for i in range(4))
    max_tokens = 8

    @pytest.fixture
    def engine(self, lm: Engine) -> Engine:
        return lm

    @pytest.fixture
    def reward(self, reward_model: Reward) -> Reward:
        return reward_model

    @pytest.fixture(params=[name for name in method_classes() if name not in ("spec-reason", "budget-forcing")])
    def method(self, request: pytest.FixtureRequest, lm: Engine, other_lm: Engine) -> Method:
        return with_models(request.param, other_lm, ImplicitReward(other_lm, lm, beta=0.3))

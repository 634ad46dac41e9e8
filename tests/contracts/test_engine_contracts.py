"""Every engine passes the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from helpers.model_server import LM
from helpers.random_models import letter_engine
from helpers.served_engines import TALK, connected

from cards.backends.local.engine import TransformersEngine
from cards.engines.base import Engine
from cards.engines.mixture import Mixture, MixtureEngine
from cards.engines.speculative import SpeculativeEngine
from cards.methods import CFG, GenARM, ProxyTuning
from cards.testing import PROMPTS, EngineContract, random_engine

LETTERS = ("ab", "c d")


class TestMockEngine(EngineContract):
    prompts = PROMPTS

    @pytest.fixture
    def engine(self) -> Engine:
        return random_engine()


class TestSpeculativeMock(EngineContract):
    prompts = PROMPTS
    segments_are_prefixes = False

    @pytest.fixture
    def engine(self) -> Engine:
        return SpeculativeEngine(random_engine(), random_engine(3), gamma=3)


class TestLocalEngine(EngineContract):
    prompts = LETTERS

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        engine = letter_engine(ends=True, slots=4)
        yield engine
        await engine.aclose()


@pytest.mark.slow
class TestEmbeddedModel(EngineContract):
    @pytest.fixture
    def engine(self, tiny: TransformersEngine) -> Engine:
        return tiny


class TestSpeculativeLocal(EngineContract):
    prompts = LETTERS
    segments_are_prefixes = False

    @pytest.fixture
    async def engine(self) -> AsyncIterator[Engine]:
        engine = SpeculativeEngine(letter_engine(ends=True, slots=8), letter_engine(slots=8))
        yield engine
        await engine.aclose()

    @pytest.mark.slow
    async def test_proposals_under_a_grammar_follow_the_masked_law(self, engine: Engine) -> None:
        await super().test_proposals_under_a_grammar_follow_the_masked_law(engine)


MIXTURES: dict[str, Callable[[Engine, Engine], Mixture]] = {
    "proxy-tuning": lambda one, two: ProxyTuning(tuned=one, untuned=two, weight=0.4),
    "genarm": lambda one, two: GenARM(guides=(one,), weights=(0.5,)),
    "cfg": lambda one, two: CFG(guidance=1.4),
}


class TestMixtureOfMocks(EngineContract):
    prompts = PROMPTS

    @pytest.fixture(params=MIXTURES)
    def engine(self, request: pytest.FixtureRequest) -> Engine:
        return MixtureEngine(random_engine(), MIXTURES[request.param](random_engine(5), random_engine(6)))


class TestMixtureOfLocalModels(EngineContract):
    prompts = LETTERS

    @pytest.fixture(params=["genarm", "cfg"])
    async def engine(self, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
        guide = letter_engine(ends=True, slots=8)
        engine = MixtureEngine(letter_engine(ends=True, slots=8), MIXTURES[request.param](guide, guide))
        yield engine
        await engine.aclose()

    @pytest.mark.slow
    async def test_proposals_under_a_grammar_follow_the_masked_law(self, engine: Engine) -> None:
        await super().test_proposals_under_a_grammar_follow_the_masked_law(engine)


class TestDraftOverAMixture(EngineContract):
    prompts = PROMPTS
    segments_are_prefixes = False

    @pytest.fixture
    def engine(self) -> Engine:
        return SpeculativeEngine(
            MixtureEngine(random_engine(), MIXTURES["genarm"](random_engine(4), random_engine(5))), random_engine(3)
        )


@pytest.mark.slow
class TestServedEngine(EngineContract):
    prompts = (TALK, "Once upon a time")

    @pytest.fixture(params=["vllm", "llama.cpp"])
    async def engine(self, request: pytest.FixtureRequest, tiny: TransformersEngine) -> AsyncIterator[Engine]:
        async with connected(LM(tiny, form=request.param)) as (engine, _):
            yield engine

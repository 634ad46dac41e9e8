"""Every reward passes the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from helpers.model_server import rewards, running

from cards import Prompt, Response, Reward
from cards.backends.http.rewards import RerankReward
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.registry import load_reward
from cards.rewards import (
    FunctionReward,
    GuardReward,
    ImplicitReward,
    JSONReward,
    KeywordReward,
    LengthReward,
    Minimum,
    Pessimistic,
    ProcessReward,
    RegexReward,
    SelfEvaluation,
    StepTokenReward,
    ValueReward,
    WeightedSum,
)
from cards.testing import MockReward, RewardContract

length = FunctionReward(lambda prompt, response: len(prompt) - 0.1 * len(response), name="length")
goods = FunctionReward(lambda prompt, response: response.count("good"), name="goods")

OF_TEXT: list[Reward] = [
    MockReward(),
    length,
    RegexReward(" good.*"),
    KeywordReward(["good", "long"], ["bad"], graded=True),
    LengthReward(2, 4, graded=True),
    JSONReward(),
    WeightedSum([length, goods], [1.0, 2.0]),
    Minimum([length, goods]),
    Pessimistic([length, goods], 0.5),
    ProcessReward(length, ","),
]


class TestRewardsOfText(RewardContract):
    @pytest.fixture(params=OF_TEXT, ids=lambda reward: type(reward).__name__)
    def reward(self, request: pytest.FixtureRequest) -> Reward:
        found: Reward = request.param
        return found


class TestClassifierOfOtherTokens(RewardContract):
    @pytest.fixture
    def reward(self, tiny_reward: ClassifierReward) -> Reward:
        return tiny_reward


class OfTokens(RewardContract):
    """Base: prompts and responses carry the tokens of the embedded model."""

    @pytest.fixture
    def prompts(self, tiny: TransformersEngine) -> Sequence[Prompt]:
        return [tiny.encode("The film was"), tiny.encode([{"role": "user", "content": "Say something nice."}])]

    @pytest.fixture
    def responses(self, tiny: TransformersEngine) -> Sequence[Response]:
        texts = ("", " Good.", " I hate you, you idiot.", " It was so good that I saw it twice.", " It was good.")
        return [Response(text, tiny.tokenize(text)) for text in texts]

    @pytest.fixture
    def followers(self, tiny: TransformersEngine) -> tuple[Response, Sequence[Response]]:
        start = tiny.extended(tiny.encode("The film was"), Response(), tiny.tokenize(" good"))
        return start, [tiny.extended(tiny.encode("The film was"), start, [token]) for token in (5, 300, 900)]


class TestClassifierOfItsOwnTokens(OfTokens):
    @pytest.fixture
    def reward(self, tiny_reward: ClassifierReward) -> Reward:
        return tiny_reward


class TestRewardsOfLanguageModels(OfTokens):
    @pytest.fixture(params=["implicit", "value", "self-evaluation", "guard", "steps"])
    async def reward(self, request: pytest.FixtureRequest, tiny: TransformersEngine) -> AsyncIterator[Reward]:
        match request.param:
            case "implicit":
                aligned = TransformersEngine.load("tiny-aligned")
                yield ImplicitReward(aligned, tiny)
                await aligned.aclose()
            case "value":
                yield ValueReward(tiny)
            case "self-evaluation":
                yield SelfEvaluation(tiny)
            case "guard":
                yield GuardReward(tiny, question="{conversation}\n\nIs it kind?", good="Yes", bad="No")
            case _:
                yield StepTokenReward(tiny, tag="!", delimiter=".")


@pytest.mark.slow
class TestServedReward(OfTokens):
    @pytest.fixture
    async def reward(self, tiny: TransformersEngine, tiny_reward: ClassifierReward) -> AsyncIterator[Reward]:
        with running(rewards(tiny_reward, tiny)) as address:
            found = load_reward(address)
            assert isinstance(found, RerankReward)
            yield found
            await found.aclose()

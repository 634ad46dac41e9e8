"""The contract of rewards: tests that every reward must pass."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

import pytest

from cards.events import Prompt, Response
from cards.rewards.base import Reward
from cards.usage import Usage, track_usage


@pytest.mark.asyncio
class RewardContract:
    """The tests of a reward. Subclass it and define the fixture `reward`.

        class TestMyReward(RewardContract):
            @pytest.fixture
            def reward(self) -> Reward:
                return MyReward()

    Override `prompts`, `responses` and `followers` if the reward needs others. The responses must not all have the same
    reward. `tolerance` bounds rounding differences.
    """

    tolerance: float = 1e-4

    @pytest.fixture
    def reward(self) -> Reward:
        raise NotImplementedError("Define the fixture `reward` in your subclass of RewardContract.")

    @pytest.fixture
    def prompts(self) -> Sequence[Prompt]:
        return [Prompt("The film was"), Prompt("Once upon a time")]

    @pytest.fixture
    def responses(self) -> Sequence[Response]:
        texts = ("", " good", " good, and it was long.", ' {"a": 1}', " 12 of 20", " bad bad bad")
        return [Response(text) for text in texts]

    @pytest.fixture
    def followers(self) -> tuple[Response, Sequence[Response]]:
        """A response, and some responses that extend it by one token."""
        return Response(" goo"), [Response(" good"), Response(" goo!")]

    async def test_a_batch_gives_the_rewards_of_single_responses_in_order(
        self, reward: Reward, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> None:
        together = await reward.score(prompts[0], responses)
        assert len(set(together)) > 1, "Define `responses` with different rewards."
        alone = [(await reward.score(prompts[0], [response]))[0] for response in responses]
        assert together == pytest.approx(alone, abs=self.tolerance)
        backwards = await reward.score(prompts[0], responses[::-1])
        assert backwards[::-1] == pytest.approx(together, abs=self.tolerance)

    async def test_rewards_are_finite_also_for_the_bare_prompt(
        self, reward: Reward, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> None:
        for prompt in prompts:
            rewards = await reward.score(prompt, [Response(), *responses])
            assert all(type(r) is float and math.isfinite(r) for r in rewards)

    async def test_earlier_scores_do_not_change_a_reward(
        self, reward: Reward, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> None:
        wanted = await reward.score(prompts[0], responses)
        await reward.score(prompts[1], responses)
        assert await reward.score(prompts[0], responses) == pytest.approx(wanted, abs=self.tolerance)
        reward.forget()
        assert await reward.score(prompts[0], responses) == pytest.approx(wanted, abs=self.tolerance)

    async def test_followers_are_scored_like_complete_responses(
        self, reward: Reward, prompts: Sequence[Prompt], followers: tuple[Response, Sequence[Response]]
    ) -> None:
        response, longer = followers
        wanted = await reward.score(prompts[0], longer)
        assert await reward.score_next(prompts[0], response, longer) == pytest.approx(wanted, abs=self.tolerance)

    async def test_each_request_is_counted_in_the_usage_of_its_caller(
        self, reward: Reward, prompts: Sequence[Prompt], responses: Sequence[Response]
    ) -> None:
        async def scored(prompt: Prompt, count: int) -> tuple[Usage, list[float]]:
            with track_usage() as usage:
                return usage, await reward.score(prompt, responses[:count])

        composite = any(isinstance(part, Reward) for part in reward.parts)
        found = await asyncio.gather(scored(prompts[0], 1), scored(prompts[1], 3), scored(prompts[0], 3))
        for (usage, _), count in zip(found, (1, 3, 3), strict=True):
            assert usage.rm_calls == count or composite  # the parts of a composite count their own calls
            assert usage.lm_decoded_tokens == 0
        assert sum(usage.rm_calls for usage, _ in found) > 0
        assert found[2][1] == pytest.approx(await reward.score(prompts[0], responses[:3]), abs=self.tolerance)

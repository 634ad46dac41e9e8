# ruff: noqa: E402  (pytest rewrites the asserts of modules registered before their import)
"""Tools for testing engines, rewards and methods, in this package and in plug-ins. Needs pytest and pytest-asyncio.

- `MockEngine`, `random_engine`, `MockReward`, `PROMPTS`: models without weights, with exact probabilities.
- `law_of`, `reweighted`, `check_law`, `total_variation`: compare samples with the distribution that a sampler claims.
- `EngineContract`, `RewardContract`, `MethodContract`: test classes. Subclass one and define its fixture:

      class TestMyReward(RewardContract):
          @pytest.fixture
          def reward(self) -> Reward:
              return MyReward()
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{kind}_contract" for kind in ("engine", "reward", "method")))

from cards.engines.mock import MockEngine as MockEngine
from cards.testing.engine_contract import EngineContract as EngineContract
from cards.testing.laws import check_law as check_law
from cards.testing.laws import law_of as law_of
from cards.testing.laws import normalised as normalised
from cards.testing.laws import p_value as p_value
from cards.testing.laws import reweighted as reweighted
from cards.testing.laws import total_variation as total_variation
from cards.testing.method_contract import MethodContract as MethodContract
from cards.testing.mocks import PROMPTS as PROMPTS
from cards.testing.mocks import MockReward as MockReward
from cards.testing.mocks import random_engine as random_engine
from cards.testing.mocks import random_model as random_model
from cards.testing.mocks import random_value as random_value
from cards.testing.reward_contract import RewardContract as RewardContract

"""Rewards: scores of complete or incomplete responses. A class imported here is registered under its `kind`."""

from cards.rewards.combine import Minimum as Minimum
from cards.rewards.combine import Pessimistic as Pessimistic
from cards.rewards.combine import WeightedSum as WeightedSum
from cards.rewards.confidence import ConfidenceReward as ConfidenceReward
from cards.rewards.constraints import JSONReward as JSONReward
from cards.rewards.constraints import KeywordReward as KeywordReward
from cards.rewards.constraints import LengthReward as LengthReward
from cards.rewards.constraints import RegexReward as RegexReward
from cards.rewards.function import FunctionReward as FunctionReward
from cards.rewards.grade import GradeReward as GradeReward
from cards.rewards.guard import GuardReward as GuardReward
from cards.rewards.implicit import ImplicitReward as ImplicitReward
from cards.rewards.process import ProcessReward as ProcessReward
from cards.rewards.self_evaluation import SelfEvaluation as SelfEvaluation
from cards.rewards.step_token import StepTokenReward as StepTokenReward
from cards.rewards.thinking import AfterThinking as AfterThinking
from cards.rewards.value import ValueReward as ValueReward

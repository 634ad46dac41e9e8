"""CARDS: aligned text at decoding time. Public names are imported on first use; importing cards loads no model code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ARGS": "methods.tokens.args",
    "Accepted": "events",
    "AdaSearch": "methods.search.ada_search",
    "BestOfN": "methods.responses.best_of_n",
    "Blockwise": "methods.search.blockwise",
    "CARDS": "methods.segments.cards",
    "CBS": "methods.search.cbs",
    "CDSL": "methods.drafts.cdsl",
    "CardsError": "errors",
    "Cascade": "methods.segments.cascade",
    "ClassifierReward": "backends.local.rewards",
    "ContrastiveDecoding": "methods.tokens.contrastive_decoding",
    "ContrastiveDecodingLogits": "methods.tokens.contrastive_decoding_logits",
    "ControlledDecoding": "methods.tokens.controlled_decoding",
    "DeAL": "methods.tokens.deal",
    "Decoder": "decoder",
    "Done": "events",
    "Entropy": "boundaries",
    "Fallback": "events",
    "FixedLength": "boundaries",
    "FunctionReward": "rewards.function",
    "GSI": "methods.drafts.gsi",
    "GenARM": "methods.tokens.genarm",
    "IAD": "methods.responses.iad",
    "ImplicitReward": "rewards.implicit",
    "JSONReward": "rewards.constraints",
    "KeywordReward": "rewards.constraints",
    "LengthReward": "rewards.constraints",
    "MBR": "methods.responses.mbr",
    "MBRBestOfN": "methods.responses.mbr_best_of_n",
    "Message": "events",
    "Minimum": "rewards.combine",
    "PathConsistency": "methods.responses.path_consistency",
    "Pessimism": "methods.responses.pessimism",
    "Pessimistic": "rewards.combine",
    "ProcessReward": "rewards.process",
    "Prompt": "events",
    "Proposed": "events",
    "Punctuation": "boundaries",
    "QAlign": "methods.responses.qalign",
    "QERerank": "methods.responses.qe_rerank",
    "RAD": "methods.tokens.rad",
    "RAIN": "methods.search.rain",
    "RegexReward": "rewards.constraints",
    "RSD": "methods.drafts.rsd",
    "Rejected": "events",
    "RejectionSampling": "methods.segments.rejection",
    "Response": "events",
    "Result": "events",
    "SIA": "methods.tokens.sia",
    "SMC": "methods.search.smc",
    "SSS": "methods.drafts.sss",
    "STARS": "methods.segments.stars",
    "Scored": "events",
    "Segment": "events",
    "SelfConsistency": "methods.responses.self_consistency",
    "SelfEvaluation": "rewards.self_evaluation",
    "SkipDecoding": "methods.drafts.skip_decoding",
    "SoftBestOfN": "methods.responses.soft_best_of_n",
    "Speculative": "methods.drafts.speculative",
    "SpeculativeEngine": "engines.speculative",
    "SpeculativeRejection": "methods.search.speculative_rejection",
    "Step": "boundaries",
    "StepTokenReward": "rewards.step_token",
    "TransformersEngine": "backends.local.engine",
    "TreeBoN": "methods.search.tree_bon",
    "Usage": "usage",
    "ValueReward": "rewards.value",
    "Vanilla": "methods.vanilla",
    "WeightedSum": "rewards.combine",
    "Whole": "boundaries",
    "load_engine": "registry",
    "load_reward": "registry",
    "custom_generate": "integrations.transformers",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cards' has no attribute {name!r}")
    return getattr(import_module(f"cards.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)


if TYPE_CHECKING:
    from cards.backends.local.engine import TransformersEngine as TransformersEngine
    from cards.backends.local.rewards import ClassifierReward as ClassifierReward
    from cards.boundaries import Entropy as Entropy
    from cards.boundaries import FixedLength as FixedLength
    from cards.boundaries import Punctuation as Punctuation
    from cards.boundaries import Step as Step
    from cards.boundaries import Whole as Whole
    from cards.decoder import Decoder as Decoder
    from cards.engines.speculative import SpeculativeEngine as SpeculativeEngine
    from cards.errors import CardsError as CardsError
    from cards.events import Accepted as Accepted
    from cards.events import Done as Done
    from cards.events import Fallback as Fallback
    from cards.events import Message as Message
    from cards.events import Prompt as Prompt
    from cards.events import Proposed as Proposed
    from cards.events import Rejected as Rejected
    from cards.events import Response as Response
    from cards.events import Result as Result
    from cards.events import Scored as Scored
    from cards.events import Segment as Segment
    from cards.integrations.transformers import custom_generate as custom_generate
    from cards.methods.drafts.cdsl import CDSL as CDSL
    from cards.methods.drafts.gsi import GSI as GSI
    from cards.methods.drafts.rsd import RSD as RSD
    from cards.methods.drafts.skip_decoding import SkipDecoding as SkipDecoding
    from cards.methods.drafts.speculative import Speculative as Speculative
    from cards.methods.drafts.sss import SSS as SSS
    from cards.methods.responses.best_of_n import BestOfN as BestOfN
    from cards.methods.responses.iad import IAD as IAD
    from cards.methods.responses.mbr import MBR as MBR
    from cards.methods.responses.mbr_best_of_n import MBRBestOfN as MBRBestOfN
    from cards.methods.responses.path_consistency import PathConsistency as PathConsistency
    from cards.methods.responses.pessimism import Pessimism as Pessimism
    from cards.methods.responses.qalign import QAlign as QAlign
    from cards.methods.responses.qe_rerank import QERerank as QERerank
    from cards.methods.responses.self_consistency import SelfConsistency as SelfConsistency
    from cards.methods.responses.soft_best_of_n import SoftBestOfN as SoftBestOfN
    from cards.methods.search.ada_search import AdaSearch as AdaSearch
    from cards.methods.search.blockwise import Blockwise as Blockwise
    from cards.methods.search.cbs import CBS as CBS
    from cards.methods.search.rain import RAIN as RAIN
    from cards.methods.search.smc import SMC as SMC
    from cards.methods.search.speculative_rejection import SpeculativeRejection as SpeculativeRejection
    from cards.methods.search.tree_bon import TreeBoN as TreeBoN
    from cards.methods.segments.cards import CARDS as CARDS
    from cards.methods.segments.cascade import Cascade as Cascade
    from cards.methods.segments.rejection import RejectionSampling as RejectionSampling
    from cards.methods.segments.stars import STARS as STARS
    from cards.methods.tokens.args import ARGS as ARGS
    from cards.methods.tokens.contrastive_decoding import ContrastiveDecoding as ContrastiveDecoding
    from cards.methods.tokens.contrastive_decoding_logits import ContrastiveDecodingLogits as ContrastiveDecodingLogits
    from cards.methods.tokens.controlled_decoding import ControlledDecoding as ControlledDecoding
    from cards.methods.tokens.deal import DeAL as DeAL
    from cards.methods.tokens.genarm import GenARM as GenARM
    from cards.methods.tokens.rad import RAD as RAD
    from cards.methods.tokens.sia import SIA as SIA
    from cards.methods.vanilla import Vanilla as Vanilla
    from cards.registry import load_engine as load_engine
    from cards.registry import load_reward as load_reward
    from cards.rewards.combine import Minimum as Minimum
    from cards.rewards.combine import Pessimistic as Pessimistic
    from cards.rewards.combine import WeightedSum as WeightedSum
    from cards.rewards.constraints import JSONReward as JSONReward
    from cards.rewards.constraints import KeywordReward as KeywordReward
    from cards.rewards.constraints import LengthReward as LengthReward
    from cards.rewards.constraints import RegexReward as RegexReward
    from cards.rewards.function import FunctionReward as FunctionReward
    from cards.rewards.implicit import ImplicitReward as ImplicitReward
    from cards.rewards.process import ProcessReward as ProcessReward
    from cards.rewards.self_evaluation import SelfEvaluation as SelfEvaluation
    from cards.rewards.step_token import StepTokenReward as StepTokenReward
    from cards.rewards.value import ValueReward as ValueReward
    from cards.usage import Usage as Usage

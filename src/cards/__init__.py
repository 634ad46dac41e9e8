"""CARDS: aligned text at decoding time. Public names are imported on first use; importing cards loads no model code."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Accepted": "events",
    "BestOfN": "methods.best_of_n",
    "CARDS": "methods.cards",
    "CardsError": "errors",
    "ClassifierReward": "rewards.classifier",
    "Decoder": "decoder",
    "Done": "events",
    "Entropy": "boundaries",
    "Fallback": "events",
    "FixedLength": "boundaries",
    "FunctionReward": "rewards.function",
    "Minimum": "rewards.combine",
    "Pessimistic": "rewards.combine",
    "Proposed": "events",
    "Punctuation": "boundaries",
    "Rejected": "events",
    "RejectionSampling": "methods.rejection",
    "Result": "events",
    "Scored": "events",
    "Segment": "events",
    "Step": "boundaries",
    "TransformersEngine": "engines.transformers",
    "Usage": "usage",
    "Vanilla": "methods.vanilla",
    "WeightedSum": "rewards.combine",
    "Whole": "boundaries",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cards' has no attribute {name!r}")
    return getattr(import_module(f"cards.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)


if TYPE_CHECKING:
    from cards.boundaries import Entropy as Entropy
    from cards.boundaries import FixedLength as FixedLength
    from cards.boundaries import Punctuation as Punctuation
    from cards.boundaries import Step as Step
    from cards.boundaries import Whole as Whole
    from cards.decoder import Decoder as Decoder
    from cards.engines.transformers import TransformersEngine as TransformersEngine
    from cards.errors import CardsError as CardsError
    from cards.events import Accepted as Accepted
    from cards.events import Done as Done
    from cards.events import Fallback as Fallback
    from cards.events import Proposed as Proposed
    from cards.events import Rejected as Rejected
    from cards.events import Result as Result
    from cards.events import Scored as Scored
    from cards.events import Segment as Segment
    from cards.methods.best_of_n import BestOfN as BestOfN
    from cards.methods.cards import CARDS as CARDS
    from cards.methods.rejection import RejectionSampling as RejectionSampling
    from cards.methods.vanilla import Vanilla as Vanilla
    from cards.rewards.classifier import ClassifierReward as ClassifierReward
    from cards.rewards.combine import Minimum as Minimum
    from cards.rewards.combine import Pessimistic as Pessimistic
    from cards.rewards.combine import WeightedSum as WeightedSum
    from cards.rewards.function import FunctionReward as FunctionReward
    from cards.usage import Usage as Usage

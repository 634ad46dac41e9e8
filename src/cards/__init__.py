"""Decoding-time alignment of language models. Importing this package loads no model code."""

from cards.boundaries import Boundary as Boundary
from cards.boundaries import Entropy as Entropy
from cards.boundaries import FixedLength as FixedLength
from cards.boundaries import Punctuation as Punctuation
from cards.boundaries import Step as Step
from cards.boundaries import Whole as Whole
from cards.decoder import Decoder as Decoder
from cards.engines.ask import Ask as Ask
from cards.engines.base import Engine as Engine
from cards.errors import CardsError as CardsError
from cards.events import Accepted as Accepted
from cards.events import Done as Done
from cards.events import Event as Event
from cards.events import Fallback as Fallback
from cards.events import Message as Message
from cards.events import Prompt as Prompt
from cards.events import Proposed as Proposed
from cards.events import Rejected as Rejected
from cards.events import Response as Response
from cards.events import Result as Result
from cards.events import Scored as Scored
from cards.events import Segment as Segment
from cards.grammar import Grammar as Grammar
from cards.methods.base import Method as Method
from cards.methods.base import Request as Request
from cards.methods.segments.cards import CARDS as CARDS
from cards.registry import load_engine as load_engine
from cards.registry import load_reward as load_reward
from cards.rewards.base import Reward as Reward
from cards.settings import setting as setting
from cards.shaping import Shaping as Shaping
from cards.usage import Usage as Usage

__version__ = "0.1.0"

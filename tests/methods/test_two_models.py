"""What all methods with a second LM have in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers.model_pairs import engine, value_of

from cards import Decoder, Entropy, FixedLength
from cards.boundaries import Punctuation
from cards.cli.settings import method_of
from cards.engines.base import Engine
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, SettingError
from cards.methods import CDSL, GSI, RSD, SSS
from cards.methods.base import Method
from cards.rewards import FunctionReward
from cards.settings import settings_of

SMALL_STEPS = FixedLength(maximum=5)


def methods(draft: Engine, second: Engine) -> list[Method]:
    return [
        SSS(aligned=draft, reference=second, lookahead=3),
        RSD(proposer=draft, boundary=SMALL_STEPS, threshold=0.5),
        GSI(proposer=draft, boundary=SMALL_STEPS, n=3, beta=3.0),
        CDSL(proposer=draft, lookahead=4, target=0.3, candidates=3),
    ]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SSS(temperature=-1.0), "temperature"),
        (lambda: SSS(temperature=0.0), "greedy"),
        (lambda: SSS(lookahead=0), "lookahead"),
        (lambda: RSD(threshold=1.0), "threshold"),
        (lambda: RSD(top_k=0), "top_k"),
        (lambda: GSI(n=0), "n must"),
        (lambda: GSI(beta=0.0), "beta"),
        (lambda: GSI(threshold=math.nan), "threshold"),
        (lambda: CDSL(lookahead=0), "lookahead"),
        (lambda: CDSL(agreement=0.0), "agreement"),
        (lambda: CDSL(weight=-1.0), "weight"),
        (lambda: CDSL(candidates=0), "candidates"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()


@pytest.mark.parametrize("method", methods(MockEngine(lambda ids: [0.5, 0.5], "xy"), engine()), ids=lambda m: m.name)
def test_models_of_other_tokens_are_refused(method: Method) -> None:
    with pytest.raises(MismatchError, match="share a tokenizer"):
        Decoder(engine(), FunctionReward(value_of), method)


def test_steps_can_be_set_on_the_command_line() -> None:
    assert settings_of(RSD)["boundary"].default_text == "step"
    assert method_of("rsd", {"boundary": "punctuation:.", "threshold": "0.5"}) == RSD(
        boundary=Punctuation(marks="."), threshold=0.5
    )
    assert method_of("gsi", {"boundary": "entropy"}) == GSI(boundary=Entropy())

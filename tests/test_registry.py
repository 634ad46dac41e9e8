"""Names are resolved to classes, and wrong names get a suggestion."""

from __future__ import annotations

import pytest

from cards.errors import SettingError, UnknownNameError
from cards.registry import load_engine, load_reward, make_method


def test_an_unknown_method_is_named_with_its_neighbour() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'best-of-n'"):
        make_method("best_of_n")


def test_settings_reach_the_method_and_unknown_ones_are_refused() -> None:
    assert make_method("cards", beta=0.4).beta == 0.4  # type: ignore[attr-defined]
    with pytest.raises(UnknownNameError, match=r"method 'cards'.*Did you mean 'entropy_threshold'"):
        make_method("cards", entropy_treshold=2.0)
    with pytest.raises(SettingError, match="beta"):
        make_method("cards", beta=0.0)


def test_an_unknown_model_is_refused_with_what_a_model_may_be() -> None:
    for load in (load_engine, load_reward):
        with pytest.raises(UnknownNameError, match="no-such-folder/model"):
            load("./no-such-folder/model", device="cpu")

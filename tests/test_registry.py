"""Names lead to classes, and wrong names to help."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest

from cards.errors import SettingError, UnknownNameError
from cards.methods.base import Method
from cards.registry import load_engine, load_reward, make_method, method_classes


@pytest.mark.parametrize("name", method_classes())
def test_every_registered_method_is_a_frozen_dataclass_of_that_name_that_needs_no_setting(name: str) -> None:
    method = make_method(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert is_dataclass(method)
    with pytest.raises(FrozenInstanceError):
        setattr(method, fields(method)[0].name, 1)
    assert type(method).__doc__


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

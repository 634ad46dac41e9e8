"""Errors name the cause and the closest value that works."""

from __future__ import annotations

import pytest

from cards import errors
from cards.errors import CardsError, SettingError, UnknownNameError, check


@pytest.mark.parametrize(("typed", "meant"), [("card", "cards"), ("best-of-m", "best-of-n"), ("vanila", "vanilla")])
def test_an_unknown_name_suggests_the_nearest_and_lists_all(typed: str, meant: str) -> None:
    known = ["vanilla", "cards", "best-of-n"]
    message = str(UnknownNameError("method", typed, known))
    assert f"Did you mean {meant!r}?" in message
    assert typed in message
    assert "best-of-n, cards, vanilla" in message


def test_a_long_list_is_shown_only_without_a_guess() -> None:
    known = [f"name-{letter}" for letter in "abcdefghijklmnopqrstuvw"]
    assert str(UnknownNameError("method", "name-aa", known)) == "Unknown method 'name-aa'. Did you mean 'name-a'?"
    assert "name-v, name-w" in str(UnknownNameError("method", "zzz", known))


def test_an_unknown_name_near_to_nothing_suggests_nothing() -> None:
    message = str(UnknownNameError("method", "zzz", ["cards"], "Read the guide."))
    assert "Did you mean" not in message
    assert message.endswith("Known: cards. Read the guide.")


def test_known_names_may_come_as_any_iterable() -> None:
    assert "Did you mean 'ab'?" in str(UnknownNameError("model", "aab", iter(["ab", "zz"])))


@pytest.mark.parametrize("name", ["SettingError", "UnknownNameError", "PromptError", "ModelError", "MismatchError"])
def test_errors_about_what_was_given_are_value_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), CardsError)
    assert issubclass(getattr(errors, name), ValueError)


def test_a_reward_that_fails_is_a_runtime_error() -> None:
    assert issubclass(errors.RewardError, CardsError)
    assert issubclass(errors.RewardError, RuntimeError)


def test_a_batch_error_counts_and_quotes_the_first_failure() -> None:
    error = errors.BatchError([None, None, None], {2: ValueError("late"), 1: ValueError("early")})
    assert isinstance(error, CardsError)
    assert str(error).startswith("2 of 3 prompts failed; the first, number 1: early")
    assert error.results == [None] * 3
    assert sorted(error.errors) == [1, 2]


def test_check_raises_its_message_only_where_the_condition_fails() -> None:
    check(True, "no")
    with pytest.raises(SettingError, match=r"^beta is wrong$"):
        check(False, "beta is wrong")

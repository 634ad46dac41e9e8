"""Results of every method are those that `record.py` recorded. A change that alters them on purpose records them again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import recording
from cases import METHODS
from record import read

TOLERANCE = 1e-4  # of floats, relative and absolute


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    found = recording.method(name)
    assert_same(recorded()[name], found, name)
    for number, (alone, together) in enumerate(zip(found["alone"], found["together"], strict=True)):
        del alone["usage"], together["usage"]
        assert_same(alone, together, f"{number}, alone and together")


@cache
def recorded() -> dict[str, Any]:
    return read()  # type: ignore[no-any-return]


def assert_same(old: Any, new: Any, path: str) -> None:
    found = list(differences(old, new, path))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20])


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield a line for each difference."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key in old:
            yield from differences(old[key], new[key], f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list | tuple) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}/{number}")
    elif not equal(old, new):
        yield f"{path}: recorded {old!r:.200}, now {new!r:.200}"


def equal(old: Any, new: Any) -> bool:
    if isinstance(old, float | int) and isinstance(new, float | int) and float in (type(old), type(new)):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(old) is type(new) and bool(old == new)

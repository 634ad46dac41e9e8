"""Results are those that were recorded before the refactoring (`record.py` recorded them; `cases.py` has the cases).

When a name changes, declare it here: it is applied to what was recorded. Settings and options are changed in `cases.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import recording
from cases import COMMANDS, METHODS, REQUESTS
from record import read

# Old name -> new name. A name with a dot holds only below that key: "usage.lm_steps", or for a value of that key:
# "event.Fallback". `parts` are replaced within keys and texts of any length, such as labels ("cards:max_rejections=").
RENAMED: dict[str, dict[str, str]] = {
    "keys": {},
    "values": {"method.speculative": "vanilla", "method.skip-decoding": "vanilla"},
    "parts": {  # the words of a diagnosis, which are for people
        "Rewards of incomplete answers (cut": "Rewards of incomplete responses (cut",
        "those of whole ones at": "those of complete ones at",
        "To say an answer twice changes": "Repeating a response changes",
        "The same text differs by up to": "The reward of the same text changes by up to",
        "Half of both answers is enough to tell the better one": "The first half of both responses identifies the better one",
        "answer of highest reward is below their gold average": "gold reward of the highest-reward response is below average",
        "choose whole answers (best-of-n), or another reward": "use complete responses (best-of-n) or another reward",
    },
}
DROPPED: set[str] = {
    *("stdout.speculative", "stdout.skip-decoding", "settings.--draft", "settings.--gamma"),
    *("settings.draft", "settings.gamma", "out.jsonl.state.json.draft", "out.jsonl.state.json.gamma"),
}  # recorded keys that are gone, written as those of RENAMED
ADDED: set[str] = {
    "format",
    "held",
    "settings.--proposer",
    "settings.--lookahead",
    "settings.--lengths",
}  # new keys that were not recorded, written in the same way
TOLERANCE = 1e-4  # of floats, relative and absolute


@pytest.mark.parametrize("name", METHODS)
def test_method(name: str) -> None:
    found = recording.method(name)
    assert_same(recorded("methods")[name], found)
    for number, (alone, together) in enumerate(zip(found["alone"], found["together"], strict=True)):
        del alone["usage"], together["usage"]
        assert not list(differences(alone, together, f"{number}, alone and together"))


@pytest.mark.parametrize("name", COMMANDS)
def test_command(name: str) -> None:
    assert_same(recorded("commands")[name], recording.command(name))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with recording.serving() as url:
        yield url


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str, server: str) -> None:
    assert_same(recorded("server")[name], recording.request(server, name))


@cache
def recorded(group: str) -> dict[str, Any]:
    return read(group)  # type: ignore[no-any-return]


def assert_same(old: Any, new: Any) -> None:
    found = list(differences(renamed(old), new))
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20])


def renamed(old: Any, parent: str = "") -> Any:
    """Recorded data with today's names."""
    if isinstance(old, dict):
        kept = {key: value for key, value in old.items() if not listed(DROPPED, parent, key)}
        return {new_name("keys", key, parent): renamed(value, key) for key, value in kept.items()}
    if isinstance(old, list):
        return [renamed(value, parent) for value in old]
    return new_name("values", old, parent) if isinstance(old, str) else old


def new_name(kind: str, name: str, parent: str) -> str:
    names = RENAMED[kind]
    name = names.get(f"{parent}.{name}", names.get(name, name))
    for part, new in RENAMED["parts"].items():
        name = name.replace(part, new)
    return name


def listed(names: set[str], parent: str, key: str) -> bool:
    return key in names or f"{parent}.{key}" in names


def differences(old: Any, new: Any, path: str = "", parent: str = "") -> Iterator[str]:
    """Lines that say where the two differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            where = f"{path}/{key}"
            if key not in new:
                yield f"{where}: recorded {old[key]!r:.80}, now missing"
            elif key in old:
                yield from differences(old[key], new[key], where, key)
            elif not listed(ADDED, parent, key):
                yield f"{where}: not recorded, now {new[key]!r:.80}"
    elif isinstance(old, list) and isinstance(new, list | tuple):
        if len(old) != len(new):
            yield f"{path}: recorded {len(old)} items, now {len(new)}"
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, f"{path}/{number}", parent)
    elif not equal(old, new):
        yield f"{path}: recorded {old!r:.200}, now {new!r:.200}"


def equal(old: Any, new: Any) -> bool:
    if isinstance(old, float | int) and isinstance(new, float | int) and float in (type(old), type(new)):
        return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(old) is type(new) and bool(old == new)

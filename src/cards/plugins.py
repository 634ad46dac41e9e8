"""Objects that other packages add through entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from importlib.metadata import entry_points
from typing import Any

from cards.errors import MismatchError

log = logging.getLogger("cards")


def plugins(group: str, name_of: Callable[[str, Any], str], known: Container[str]) -> dict[str, Any]:
    """The objects of a group of entry points by name; `name_of(entry point's name, object)` checks and names one.

    A plug-in that cannot be imported, that `name_of` refuses, or whose name is known already is reported and skipped.
    """
    found: dict[str, Any] = {}
    for entry in entry_points(group=group):
        try:
            loaded = entry.load()
            name = name_of(entry.name, loaded)
            if name in known or name in found:
                raise MismatchError(f"the name {name!r} is taken")
        except Exception as error:  # of any kind: it is foreign code
            log.warning("The plug-in %r of %s is skipped: %s", entry.name, group, str(error) or type(error).__name__)
        else:
            found[name] = loaded
    return found


def is_class(found: Any, base: type) -> bool:
    """Whether an object is a class derived from `base`."""
    return isinstance(found, type) and issubclass(found, base)

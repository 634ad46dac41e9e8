"""Plug-ins: objects that other packages add through entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from importlib.metadata import entry_points
from typing import Any

from cards.errors import MismatchError

log = logging.getLogger("cards")


def plugins(group: str, name_of: Callable[[str, Any], str], known: Container[str]) -> dict[str, Any]:
    """Load the objects of a group of entry points and return them by name.

    `name_of(name of the entry point, object)` returns the name of an object, or raises an error if the object is invalid.
    A plug-in is skipped with a warning if it cannot be imported, is invalid, or has a name that is already in use.
    """
    found: dict[str, Any] = {}
    for entry in entry_points(group=group):
        try:
            loaded = entry.load()
            name = name_of(entry.name, loaded)
            if name in known or name in found:
                raise MismatchError(f"the name {name!r} is already in use")
        except Exception as error:  # third-party code can raise anything
            log.warning("Plug-in %r of %s was skipped: %s", entry.name, group, str(error) or type(error).__name__)
        else:
            found[name] = loaded
    return found


def is_class(found: Any, base: type) -> bool:
    """Return whether an object is a subclass of `base`."""
    return isinstance(found, type) and issubclass(found, base)

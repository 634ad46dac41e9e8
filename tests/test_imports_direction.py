"""Imports go one way: a module imports from its own part of the package and from the layers below it, lazily or not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cards

ROOT = Path(cards.__file__).parent
LAYERS = (  # from top to bottom; parts of one layer do not import each other. All other modules are flat, at the bottom
    {"__main__"},
    {"cli"},
    {"integrations"},
    {"batch", "serve"},
    {"study"},
    {"decoder", "profile", "placement"},
    {"registry"},
    {"methods", "backends"},
    {"rewards"},
    {"engines"},
)
TESTING = "testing"  # for tests alone


def imported(path: Path) -> Iterator[str]:
    """The parts of the package that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"cards.{alias.name}" for alias in node.names] if node.module == "cards" else [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("cards."))


def layer(part: str) -> int:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), len(LAYERS))


def test_imports_go_one_way() -> None:
    upward = set()
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        part = module.partition(".")[0]
        if part == "__init__" or part == TESTING:  # the first has the public names of all layers
            continue
        for other in set(imported(path)) - {part}:
            flat = layer(part) == layer(other) == len(LAYERS)
            if other == TESTING or not (flat or layer(part) < layer(other)):
                upward.add((module.removesuffix(".__init__"), other))
    assert not upward, "these import from above or beside them"

"""What the pages show is what works, on the embedded models; every method has a page."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cards.cli
import cards.registry
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.errors import UnreachableTargetWarning
from cards.registry import method_classes

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def commands(page: Path) -> list[str]:
    """Return the commands of a page; a backslash at the end of a line continues a command."""
    return re.findall(r"^\$ (cards .+|echo .+)$", page.read_text().replace(" \\\n", " "), re.M)


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]
PROGRAMS = [(page, code) for page in PAGES for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)]
FEW_TOKENS = ("generate", "compare")


def named(value: object) -> str:
    return str(value.relative_to(DOCS).with_suffix("")) if isinstance(value, Path) else ""


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Any:
    """The embedded models are loaded once for all pages; a draft is its own, for it writes to other books."""
    patch = pytest.MonkeyPatch()
    engine, reward = cache(_engine), cache(ClassifierReward.load)
    patch.setattr(TransformersEngine, "load", staticmethod(lambda name, **options: engine(name)))
    patch.setattr(ClassifierReward, "load", staticmethod(lambda name, **options: reward(name)))
    yield
    patch.undo()


_load: Callable[[str], Engine] = TransformersEngine.load


def _engine(name: str) -> Engine:
    return _load(name)


@pytest.mark.parametrize("name", method_classes())
def test_every_method_has_a_page(name: str) -> None:
    assert (DOCS / "methods" / f"{name}.md").read_text().startswith("# ")


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=named)
def test_commands(page: Path, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, _, command = line.rpartition(" | ")
    program, *arguments = shlex.split(command)
    assert program == "cards"
    if arguments[0] in FEW_TOKENS:
        arguments += ["--max-tokens", "12"]
    ran = CliRunner().invoke(cards.cli.app, arguments, input=before.removeprefix("echo ") or "Typed at the terminal.")
    assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize(("page", "code"), PROGRAMS, ids=named)
def test_programs(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreachableTargetWarning)  # short responses often miss the target
        exec(code, {})

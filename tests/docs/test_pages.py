"""Commands and programs on the pages run on the embedded models and print what the pages show; every method has a page."""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cards.cli
import cards.registry
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import UnreachableTargetWarning
from cards.registry import method_classes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WIDTH = 80  # columns of code
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROGRAM = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S)


def commands(page: Path) -> list[tuple[str, str]]:
    """Return the `cards` commands of a page and what they print, if it is shown. A backslash continues a line."""
    blocks = [text.replace(" \\\n", " ") for kind, text in BLOCK.findall(page.read_text()) if kind == "console"]
    return [found for block in blocks for found in re.findall(r"^\$ ((?:cards|echo) .+)\n((?:(?!\$ ).*\n)*)", block, re.M)]


COMMANDS = [(page, *found) for page in PAGES for found in commands(page)]
PROGRAMS = [(page, *found) for page in PAGES for found in PROGRAM.findall(page.read_text())]
FEW_TOKENS = ("generate", "compare")
NAV = (ROOT / "mkdocs.yml").read_text().partition("How-to guides:")[2].partition("  - Methods:")[0]
HOW_TO = re.findall(r"^ {6}- .+: (\S+\.md)$", NAV, re.M)


def named(value: object) -> str:
    return str(value.relative_to(DOCS).with_suffix("")) if isinstance(value, Path) else ""


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[list[Any]]:
    """The embedded models are loaded once for all pages."""
    patch, loaded = pytest.MonkeyPatch(), []

    def once(load: Callable[[str], Any]) -> Callable[..., Any]:
        @cache
        def model(name: str) -> Any:
            loaded.append(load(name))
            return loaded[-1]

        return lambda name, **options: model(name)

    patch.setattr(TransformersEngine, "load", staticmethod(once(TransformersEngine.load)))
    patch.setattr(ClassifierReward, "load", staticmethod(once(ClassifierReward.load)))
    yield loaded
    patch.undo()


@pytest.fixture(autouse=True)
def cold(loaded_once: list[Any]) -> None:
    """Every page begins with empty caches, as in a new process."""
    for model in loaded_once:
        model.forget()


@pytest.mark.parametrize("name", method_classes())
def test_every_method_has_a_page(name: str) -> None:
    assert (DOCS / "methods" / f"{name}.md").read_text().startswith("# ")


@pytest.mark.parametrize(("page", "line", "shown"), COMMANDS, ids=named)
def test_commands(page: Path, line: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, _, command = line.rpartition(" | ")
    program, *arguments = shlex.split(command)
    assert program == "cards"
    if arguments[0] in FEW_TOKENS and not shown:
        arguments += ["--max-tokens", "12"]
    ran = CliRunner().invoke(cards.cli.app, arguments, input=before.removeprefix("echo ") or "Typed at the terminal.")
    unconfirmed = arguments[0] == "calibrate" and ran.exit_code == 1  # the cost of its trial depends on the machine's load
    assert ran.exit_code == 0 or unconfirmed, ran.stderr
    # A trace goes to standard error, and its last line has the seconds, so a page may leave out an end of it.
    assert not shown or (shown.startswith(ran.stdout) and (ran.stdout + ran.stderr).startswith(shown))


@pytest.mark.parametrize(("page", "code", "shown"), PROGRAMS, ids=named)
def test_programs(
    page: Path, code: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreachableTargetWarning)  # short responses often miss the target
        exec(code, {})
    assert not shown or capsys.readouterr().out.rstrip("\n") == shown.rstrip("\n")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_fits_80_columns(page: Path) -> None:
    text = page.read_text()
    fenced = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    indented = [line[4:] for line in BLOCK.sub("", text).splitlines() if re.match(r" {4}\S", line)]
    assert not [line for line in [*fenced, *indented] if len(line) > WIDTH]


@pytest.mark.parametrize("page", HOW_TO)
def test_a_how_to_page_shows_output(page: str) -> None:
    text = (DOCS / page).read_text()
    printed = any(kind == "text" for kind, _ in BLOCK.findall(text)) or any(shown for _, shown in commands(DOCS / page))
    assert printed or "<!-- " in text or "![" in text or page == "capacity.md"  # a table of results, or a screenshot

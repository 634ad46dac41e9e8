"""What the files of deploy/ and their page tell a user to say is something that the commands understand."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from cards.cli import app
from cards.cli.serve import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "deploy").iterdir()), ROOT / "docs" / "deploy.md"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def lines() -> list[list[str]]:
    """Command lines after `cards`: of the units, of the image, and of containers of it."""
    found = []
    for file in FILES:
        text = re.sub(r" \\\n *", " ", file.read_text(encoding="utf-8"))
        found += [shlex.split(line) for line in re.findall(r"^ExecStart=\S*/cards (.+)$", text, re.M)]
        found += [json.loads(line) for line in re.findall(r"^CMD (\[.+\])$", text, re.M)]
        found += [shlex.split(line) for line in re.findall(r"^docker run .* cards(?:-gpu)? (\w+ .+)$", text, re.M)]
    return found


def test_variables_are_those_that_the_server_reads() -> None:
    said = {name for file in FILES for name in re.findall(r"\bCARDS_[A-Z_]+", file.read_text(encoding="utf-8"))}
    assert said == {KEY_VARIABLE}


@pytest.mark.parametrize("line", lines(), ids=" ".join)
def test_command_lines_are_understood(line: list[str]) -> None:
    name, *options = line
    COMMANDS[name].make_context(name, options)  # raises UsageError


def test_there_are_command_lines() -> None:
    assert len(lines()) == 5


def test_the_image_asks_for_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"^ARG EXTRAS=(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.M)
    assert set(asked.split(",")) <= set(extras)


def test_the_image_gets_all_that_the_wheel_includes() -> None:
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for source in targets["wheel"]["force-include"]:
        assert f"COPY {source} {source}\n" in dockerfile

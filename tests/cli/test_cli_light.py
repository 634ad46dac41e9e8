"""Version, help and the list of methods need no model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.mock_cli import Cards, plain

import cards
from cards.registry import method_class, method_classes
from cards.settings import settings_of


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["methods"], ["--version"]])
def test_no_model_code_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from cards.cli import main; sys.argv = ['cards', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_version(cli: Cards) -> None:
    assert cli("--version").stdout == f"cards {cards.__version__}\n"


def test_methods_lists_every_method_by_family(cli: Cards) -> None:
    words = set(plain(cli("methods").stdout).split())
    assert method_classes().keys() <= words
    listed = json.loads(cli("methods", "--json").stdout)
    assert {entry["name"]: entry["summary"] for entry in listed} == {n: cls.summary for n, cls in method_classes().items()}


@pytest.mark.parametrize("name", sorted(method_classes()))
def test_methods_explains_each_one(name: str, cli: Cards) -> None:
    printed = plain(cli("methods", name).stdout)
    entry = json.loads(cli("methods", name, "--json").stdout)
    assert set(entry["needs"]) == method_class(name).needs
    assert entry["sections"].keys() >= {"How it works", "Cost", "Source"}
    for setting in entry["settings"]:
        assert {setting["option"], setting["default"].split()[0]} <= set(printed.split())
    assert "](" not in printed


def test_an_unknown_method_is_not_explained(cli: Cards) -> None:
    ran = cli("methods", "best-of-m")
    assert ran.exit_code == 2
    assert "best-of-n" in ran.stderr


def flags_in(text: str) -> set[str]:
    return {word for word in plain(text).split() if word.startswith("--")}


@pytest.mark.parametrize("arguments", [[], ["--method", "smc"], ["--help", "--method=best-of-n:n=2"]])
def test_help_has_the_common_options_and_those_of_the_method(arguments: list[str], cli: Cards) -> None:
    found = flags_in(cli("generate", *arguments, "--help").stdout)
    own = ["model", "reward", "method", "seed", "max-tokens", "stop", "deadline", "device", "dtype", "slots", "context"]
    assert {f"--{name}" for name in (*own, "raw", "trace", "json")} <= found
    name = {0: "cards", 1: "best-of-n", 2: "smc"}[len(arguments) and (2 if "smc" in arguments else 1)]
    settings = {s.flag for s in settings_of(method_class(name)).values() if s.typed}
    others = {s.flag for cls in method_classes().values() for s in settings_of(cls).values()} - settings
    assert settings <= found
    assert not found & others

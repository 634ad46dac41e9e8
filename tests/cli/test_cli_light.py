"""What can be asked without a model: version, help, methods."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.mock_cli import Cards, plain

import cards
from cards.cli.settings import settings_of
from cards.registry import METHODS, method_class


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


def test_methods_lists_every_method_with_what_it_needs_and_its_settings(cli: Cards) -> None:
    words = set(plain(cli("methods").stdout).split())
    for name in METHODS:
        assert {name, *method_class(name).needs} <= words
        assert {f"{s.flag}={s.default(name)}" for s in settings_of(name)} <= words


def test_help_has_every_option(cli: Cards) -> None:
    printed = plain(cli("generate", "--help").stdout)
    own = ["model", "reward", "method", "seed", "max-tokens", "stop", "deadline", "device", "dtype", "slots", "context"]
    flags = {f"--{name}" for name in (*own, "raw", "trace", "json")}
    flags |= {s.flag for name in METHODS for s in settings_of(name)}
    assert flags <= set(printed.split())

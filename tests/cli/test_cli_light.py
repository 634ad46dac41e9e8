"""Version, help and the list of methods need no model."""

from __future__ import annotations

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


def test_methods_lists_every_method_with_what_it_needs_and_its_settings(cli: Cards) -> None:
    words = set(plain(cli("methods").stdout).split())
    for name in method_classes():
        assert {name, *method_class(name).needs} <= words
        assert {f"{s.flag}={s.default_text}" for s in settings_of(method_class(name)).values()} <= words


def test_help_has_every_option(cli: Cards) -> None:
    printed = plain(cli("generate", "--help").stdout)
    own = ["model", "reward", "method", "seed", "max-tokens", "stop", "deadline", "device", "dtype", "slots", "context"]
    flags = {f"--{name}" for name in (*own, "raw", "trace", "json")}
    flags |= {s.flag for cls in method_classes().values() for s in settings_of(cls).values()}
    assert flags <= set(printed.split())

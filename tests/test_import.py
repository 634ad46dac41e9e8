"""Importing the package is fast and loads neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys
from pkgutil import iter_modules

import pytest

from cards import engines, rewards


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import cards",
        "import cards; dir(cards); cards.CARDS(target=1.0); cards.methods.BestOfN(); cards.methods.Vanilla()",
        "import cards; cards.Result, cards.Usage, cards.Entropy(), cards.Decoder, cards.rewards.FunctionReward(len)",
        "import cards.registry, cards.errors, cards.acceptance, cards.boundaries, cards.events",
    ],
)
def test_neither_torch_nor_transformers_is_imported_before_a_model_is(code: str) -> None:
    loaded = modules_after(code)
    assert "cards" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "tokenizers", "scipy", "rich", "typer"})


def test_engines_and_rewards_need_neither_torch_nor_a_back_end() -> None:
    """Everything that back ends share runs on numpy; llama.cpp and servers need no torch."""
    every = [f"{room.__name__}.{module.name}" for room in (engines, rewards) for module in iter_modules(room.__path__)]
    code = f"import {', '.join(every)}"
    assert modules_after(code).isdisjoint({"torch", "transformers", "tokenizers"})
    assert "False" in modules_after(f"{code}, sys; print('cards.backends' in sys.modules)")

"""Importing the package costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest


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


def test_the_mock_engine_needs_no_transformers() -> None:
    assert "transformers" not in modules_after("import cards.engines.mock")

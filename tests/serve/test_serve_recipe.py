"""The recipe of docs/openai.md, run against a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.running_server import Running

PAGE = Path(__file__).parents[2] / "docs" / "openai.md"


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_the_recipe_runs_as_it_stands(tiny: Running, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) == 3
    assert "http://127.0.0.1:8000" in blocks[0]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", tiny.url), names)
        told = capsys.readouterr().out
        assert re.search(r"-?\d+\.\d+", told), told
    names["client"].close()

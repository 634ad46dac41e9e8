"""Progress bars are shown on terminals only."""

from __future__ import annotations

import pytest

from cards import Decoder
from cards.engines.mock import MockEngine
from cards.methods import Vanilla
from cards.progress import progress_bar


@pytest.mark.parametrize(("total", "show"), [(3, False), (0, True), (3, None)])
def test_nothing_is_shown_unless_wanted_or_on_a_terminal(
    total: int, show: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total, show) as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_a_bar_counts_to_its_total_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, True, "thinking") as advance:
        for _ in range(3):
            advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "thinking" in err
    assert "3/3" in err


def test_a_batch_advances_its_bar_once_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    decoder = Decoder(MockEngine(lambda ids: [0.5, 0.5], "ab"), None, Vanilla())
    decoder.batch(["a"] * 4, max_tokens=2, progress=True)
    assert "4/4" in capsys.readouterr().err
    decoder.batch(["a"] * 4, max_tokens=2, progress=False)
    assert capsys.readouterr().err == ""

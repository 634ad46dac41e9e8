"""Figures, tables and plots against rows whose figures are known by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from cards.errors import CardsError, UnknownNameError
from cards.study.bench.plot import save
from cards.study.bench.report import report
from cards.study.bench.tables import tables, write
from cards.study.tables import big
from cards.usage import Usage

HEADER = {"model": "m", "reward": "r", "gold": "g", "prompts": "p"}


def row(label: str, prompt: str, text: str, gold: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    method, _, settings = label.partition(":")
    usage = Usage(lm_decoded_tokens=10, rm_tokens=20, accepted=1, rejected=3, fallbacks=1, flops=4e9, seconds=2.0)
    found = {
        "id": prompt,
        "prompt": prompt,
        "method": method,
        "label": label,
        "line": method,
        "settings": {"given": settings},
        "seed": seed,
        "text": text,
        "token_ids": [1, 2],
        "usage": usage.to_dict(),
        "batch": {"seconds": 6.0, "requests": 4},
        "reward": 2 * gold,
        "gold": gold,
        "logprob": -2 * math.log(4),
        "logprob_other": -2 * math.log(4) - 1.0,
        "kl_bound": None,
    }
    return found | more


ROWS = [
    row("vanilla", "a", "one two", 0.0),
    row("vanilla", "b", "one two", 1.0),
    row("best-of-n:n=2", "a", "three four three", 1.0, kl_bound=math.log(2) - 0.5, logprob=-2 * math.log(8)),
    row("best-of-n:n=2", "b", "one two", 1.0, logprob=-2 * math.log(8), kl_bound=math.log(2) - 0.5),
    row("best-of-n:n=4", "a", "five", -1.0),
    row("best-of-n:n=4", "b", "six", 3.0),
]


def test_figures_are_those_computed_by_hand() -> None:
    plain, two, four = report(HEADER, ROWS).summaries
    assert (plain.label, two.label, four.label) == ("vanilla", "best-of-n:n=2", "best-of-n:n=4")
    assert (two.line, two.answers, two.kept, two.drawn, two.rm_tokens) == ("best-of-n", 2, 2.0, 10.0, 20.0)
    assert (two.flops, two.seconds, two.latency) == (4e9, 1.5, 2.0)
    assert (two.acceptance, two.fallback) == (None, 0.5)  # best-of-n tests nothing, whatever the usage has
    assert two.score is not None
    assert two.reward is not None
    assert (two.score.mean, two.reward.mean) == (1.0, 2.0)
    assert two.against is not None
    assert (two.against.win.mean, two.against.tie.mean, two.against.loss.mean, two.against.gain.mean) == (0.5, 0.5, 0.0, 0.5)
    assert four.against is not None
    assert (four.against.win.mean, four.against.loss.mean, four.against.gain.mean) == (0.5, 0.5, 0.5)
    assert two.distinct == (4 / 5, 3 / 3, 1.0)  # three four one two; 34 43 12; 343
    assert two.repetition == (0.0, 0.0, None)
    assert two.perplexity == pytest.approx(8.0)
    assert two.coherence == pytest.approx((2 * math.log(4) + 1 - 2 * math.log(8)) / 2)
    assert two.excess_nll == pytest.approx(2 * math.log(8) - 2 * math.log(4))
    assert two.kl_bound == pytest.approx(0.193, abs=1e-3)
    assert (plain.excess_nll, plain.kl_bound) == (0.0, None)


def test_a_tolerance_makes_ties_and_another_baseline_turns_the_comparison() -> None:
    found = report(HEADER, ROWS, baseline="best-of-n:n=2", tolerance=1.0).summaries[0].against
    assert found is not None
    assert (found.win.mean, found.tie.mean, found.gain.mean) == (0.0, 1.0, -0.5)
    with pytest.raises(UnknownNameError, match=r"Unknown baseline 'best'.*vanilla"):
        report(HEADER, ROWS, baseline="best")
    assert report(HEADER, ROWS[2:]).baseline == "best-of-n:n=2"  # there is no vanilla


def test_without_gold_the_reward_counts_and_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    bare = [r | {"gold": None, "logprob": None, "logprob_other": None, "usage": Usage().to_dict()} for r in ROWS]
    for r in bare:
        del r["batch"]
    found = report(HEADER, [*bare, {"label": "vanilla", "text": "ungraded"}])
    assert found.graded == "reward"
    one = found.summaries[1]
    assert one.score == one.reward
    assert (one.flops, one.seconds, one.acceptance, one.perplexity, one.coherence, one.excess_nll) == (None,) * 6
    markdown = write(found, tmp_path / "results.jsonl")[0].read_text(encoding="utf-8")
    assert "| best-of-n:n=2 | 2.0 | 0.0 | 0.0 | - | - | 0.000 | - | - |" in markdown


def test_tables_say_the_same_in_all_forms(tmp_path: Path) -> None:
    found = report(HEADER, ROWS)
    quality, against, cost, text = tables(found)
    assert quality.columns == ["method", "responses", "gold", "reward"]
    assert quality.rows[0] == ["vanilla", "2", "0.50 [-4.08, 5.08]", "1.00 [-8.17, 10.17]"]
    assert [r[0] for r in against.rows] == ["best-of-n:n=2", "best-of-n:n=4"]
    assert against.rows[0][1:] == ["0.50 [-4.08, 5.08]", "50% [9, 91]", "50% [9, 91]", "0% [0, 66]"]
    assert cost.rows[1] == ["best-of-n:n=2", "2.0", "10.0", "20.0", "4G", "1.500", "2.000", "-", "50%"]
    assert text.rows[1] == ["best-of-n:n=2", ".80/1.00/1.00", ".00/.00/-", "-0.19", "8.00", "1.39", "0.19"]
    markdown, rows, machine = (path.read_text(encoding="utf-8") for path in write(found, tmp_path / "results.jsonl"))
    assert "| best-of-n:n=2 | 2.0 | 10.0 | 20.0 | 4G | 1.500 | 2.000 | - | 50% |" in markdown
    assert "model: m, reward: r, gold: g, prompts: p" in markdown
    parsed = list(csv.DictReader(io.StringIO(rows)))
    assert [float(r["score.mean"]) for r in parsed] == [0.5, 1.0, 1.0]
    assert float(parsed[1]["against.win.mean"]) == 0.5
    assert float(parsed[1]["distinct.1"]) == 0.8
    assert float(parsed[2]["repetition.2"] or "nan") != 0.0
    whole = json.loads(machine)
    assert (whole["baseline"], whole["made_with"], whole["score"]) == ("vanilla", HEADER, "gold")
    assert whole["methods"][1]["against.gain.mean"] == 0.5


def test_big_numbers_have_three_digits() -> None:
    assert [big(x) for x in (None, 0, 7, 999, 1000, 12345, 4e9, 9.996e14, 3e21)] == [
        "-", "-", "7", "999", "1k", "12.3k", "4G", "1P", "3e+03E",
    ]  # fmt: skip


def test_a_plot_has_a_line_a_method_and_a_panel_a_cost(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, svg = save(report(HEADER, ROWS), tmp_path / "results.v2")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert len(png.read_bytes()) > 20_000
    drawing = svg.read_text(encoding="utf-8")
    assert (png.name, svg.name) == ("results.v2.png", "results.v2.svg")
    for told in ("gold reward (mean, 95% interval)", "best-of-n, by n", "vanilla", "FLOPs", "wall-clock"):
        assert told in drawing
    bare = [r | {"usage": Usage().to_dict()} for r in ROWS]
    assert "FLOPs" not in save(report(HEADER, bare), tmp_path / "bare")[1].read_text(encoding="utf-8")


def test_without_matplotlib_it_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CardsError, match=r"pip install 'cards-decoding\[bench\]'"):
        save(report(HEADER, ROWS), tmp_path / "results")

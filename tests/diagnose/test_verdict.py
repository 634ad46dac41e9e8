"""Rewards that cannot judge incomplete answers get a bad verdict, those that can a good one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cards.engines.mock import MockEngine
from cards.errors import PromptError
from cards.rewards.function import FunctionReward
from cards.study.diagnose import pairs, plot
from cards.study.diagnose.plan import DiagnosisPlan
from cards.study.diagnose.run import Diagnosis, Measurements
from cards.study.diagnose.verdict import DiagnosisVerdict, Finding, to_dict, verdict
from cards.study.models import Models
from cards.study.prompts import PromptRecord, read

LETTERS = ["</s>", "a", "b", "c", "d"]


def chances(ids: tuple[int, ...]) -> list[float]:
    return [0.08, 0.4, 0.2, 0.2, 0.12] if len(ids) % 2 else [0.08, 0.2, 0.3, 0.2, 0.22]


async def noise(prompt: str, response: str) -> float:
    return int.from_bytes(hashlib.sha256((prompt + response).encode()).digest()[:4]) / 2**32


async def length(prompt: str, response: str) -> float:
    return float(len(response))


async def share_of_b(prompt: str, response: str) -> float:
    return response.count("b") / max(1, len(response))


async def only_at_the_end(prompt: str, response: str) -> float:
    return 0.0


async def against_b(prompt: str, response: str) -> float:
    return -response.count("b") / max(1, len(response))


async def diagnosed(
    reward: Callable[..., object],
    gold: Callable[..., object] | None = None,
    found: list[pairs.PairRecord] | None = None,
    max_tokens: int = 24,
) -> tuple[Measurements, DiagnosisVerdict]:
    engine, judge = MockEngine(chances, LETTERS, end="</s>"), FunctionReward(reward)  # type: ignore[arg-type]
    graded = None if gold is None else FunctionReward(gold)  # type: ignore[arg-type]
    questions = [PromptRecord(n, str(n), "ab"[n % 2] * (n + 1)) for n in range(12)]
    plan = DiagnosisPlan(form="raw", max_tokens=max_tokens, entropy_threshold=1.45, fixed=5)
    work = Diagnosis(Models(engine, judge, graded), judge, questions, found or [], plan)
    figures = await work.run()
    return figures, verdict(figures)


def finding(judged: DiagnosisVerdict, name: str) -> Finding:
    return next(one for one in judged.findings if one.name == name)


async def test_noise_is_not_fit_and_the_words_say_why() -> None:
    _, judged = await diagnosed(noise)
    assert finding(judged, "prefixes").grade == "poor"
    assert judged.grade == "poor"
    assert judged.words.startswith("Not fit for segments")
    assert "incomplete responses" in judged.words


async def test_length_is_not_fit() -> None:
    figures, judged = await diagnosed(length)
    assert figures.length is not None
    assert figures.length.mean > 0.99
    assert finding(judged, "length").grade == finding(judged, "repetition").grade == "poor"
    assert "+1.00" in finding(judged, "length").words


async def test_a_constant_says_nothing() -> None:
    _, judged = await diagnosed(only_at_the_end)
    assert finding(judged, "prefixes").value == 0
    assert judged.grade == "poor"


async def test_responses_too_short_to_be_cut_are_not_enough_data() -> None:
    figures, judged = await diagnosed(share_of_b, max_tokens=2)
    assert figures.cuts == 0
    assert finding(judged, "prefixes").grade == judged.grade == "not enough data"
    assert judged.words.startswith("Not enough data")


async def test_a_running_share_is_fit() -> None:
    figures, judged = await diagnosed(share_of_b)
    assert finding(judged, "prefixes").grade in ("good", "fair")
    assert {finding(judged, name).grade for name in ("length", "repetition", "batch", "padding")} <= {"good", "fair"}
    assert judged.grade != "poor"
    late, early = (figures.prefixes["fixed"][name]["spearman"] for name in ("late", "early"))
    assert late is not None
    assert early is None or late.mean > early.mean


async def test_hacking_is_found_where_gold_goes_the_other_way() -> None:
    _, judged = await diagnosed(share_of_b, gold=against_b)
    assert finding(judged, "hacking").value == 1.0
    agreeing, judged = await diagnosed(share_of_b, gold=share_of_b)
    assert finding(judged, "hacking").value == 0.0
    assert agreeing.discordant is not None
    assert agreeing.discordant.mean == 0.0


async def test_pairs_are_judged_by_the_part_that_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "aabb", "rejected": "aacc"}, {"prompt": "a", "chosen": "bbcc", "rejected": "ccbb"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    figures, judged = await diagnosed(share_of_b, found=pairs.read(tmp_path / "p.jsonl"))
    assert {part: at.mean for part, at in figures.preferences.items()} == {"25%": 0.75, "50%": 0.75, "75%": 1.0, "100%": 0.75}
    assert finding(judged, "preferences").value == 0.75
    report = json.loads(json.dumps(to_dict(figures, judged)))
    assert report["verdict"] == judged.grade
    assert {one["name"] for one in report["findings"]} >= {"prefixes", "length", "preferences"}
    plot.save(figures, tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("row", ['{"prompt": "a", "chosen": "b"}', '{"prompt": "a", "chosen": "b", "rejected": 3}', "[]"])
def test_broken_pairs_are_named(row: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + row)
    with pytest.raises(PromptError, match="Pair number 1"):
        pairs.read(tmp_path / "p.jsonl")


def test_answers_of_dialogues_and_messages_are_found(tmp_path: Path) -> None:
    said = "\n\nHuman: Hi.\n\nAssistant: Hello"
    rows = [
        {"chosen": said + " there.", "rejected": said + " you."},
        {
            "prompt": "Hi.",
            "chosen": [{"role": "assistant", "content": "A"}],
            "rejected": [{"role": "assistant", "content": "B"}],
        },
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = pairs.read(tmp_path / "p.jsonl")
    assert (first.chosen, first.rejected) == (" Hello there.", " Hello you.")
    assert first.prompt == ({"role": "user", "content": "Hi."},)
    assert (second.chosen, second.rejected) == ("A", "B")


async def test_the_embedded_reward_is_usable() -> None:
    from cards.backends.local.engine import TransformersEngine
    from cards.backends.local.rewards import ClassifierReward

    engine, judge = TransformersEngine.load("tiny"), ClassifierReward.load("tiny")
    work = Diagnosis(Models(engine, judge), judge, read("tiny")[:4], plan=DiagnosisPlan(answers=6, max_tokens=24))
    figures = await work.run()
    judged = verdict(figures)
    assert judged.grade in ("good", "fair")
    assert figures.drift["batch"] is not None
    assert figures.drift["batch"] < 1e-3
    await engine.aclose()
    await judge.aclose()

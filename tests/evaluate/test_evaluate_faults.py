"""What is known to be wrong with published evaluations cannot happen here; docs/evaluate.md names these tests."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.judge_server import benched, figures, first, judge, judged, longer, write
from helpers.mock_models import mock

import cards
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Response
from cards.study.evaluate.report import EvaluationReport
from cards.study.evaluate.responses import read
from cards.study.evaluate.run import HEADER, Evaluation, grade_key, prompt_of, response_of
from cards.study.evaluate.verdicts import Judgements
from cards.study.journal import Journal
from cards.study.session import Session


def test_the_page_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    rows = (root / "docs/evaluate.md").read_text(encoding="utf-8").split("## Known faults")[1].splitlines()[6:]
    assert len(rows) == 11
    here, there = (root / "tests" / name for name in ("evaluate/test_evaluate_faults.py", "bench/test_bench_prompts.py"))
    for row in rows:
        code = (there if there.name in row else here).read_text(encoding="utf-8")
        named = re.findall(r"`(test_\w+)`", row)
        assert named
        assert all(f"def {name}(" in code for name in named), row


async def test_answers_to_different_prompts_are_never_compared(tmp_path: Path) -> None:
    """Two files in different orders, of which each lacks a prompt, and whose row numbers and ids agree all the same."""
    prompts = [f"Prompt {i}?" for i in range(8)]
    mine = {prompt: f"mine to {prompt}" for prompt in prompts[:-1]}
    base = {prompt: f"base to {prompt}" for prompt in reversed(prompts[1:])}
    with judge(longer) as (server, judges):
        evaluated, _ = await judged(tmp_path / "j.jsonl", write(tmp_path, mine=mine, base=base), judges)
    assert figures(evaluated, "mine")["pairs"] == 6
    for text in server.texts:
        assert len({line.rpartition(" to ")[2] for line in text.splitlines() if " to Prompt" in line}) == 1
        assert text.count(text.split("user: ")[1].split("\n")[0]) == 3  # the prompt, and both answers to it


async def test_a_verdict_that_cannot_be_read_is_no_tie(tmp_path: Path) -> None:
    answers = write(tmp_path, mine={"a?": "long answer", "b?": "x"}, base={"a?": "short", "b?": "y"})
    with judge(lambda found, text: "Hard to say!" if "b?" in text else longer(found, text)) as (_, judges):
        evaluated, _ = await judged(tmp_path / "j.jsonl", answers, judges)
    found = figures(evaluated, "mine")
    assert (found["wins"], found["ties"], found["losses"], found["unparsed"]) == (1, 0, 0, 1)


async def test_the_place_of_an_answer_cannot_win(tmp_path: Path) -> None:
    answers = write(tmp_path, mine={f"{i}?": "one" for i in range(5)}, base={f"{i}?": "two" for i in range(5)})
    with judge(first) as (server, judges):
        evaluated, _ = await judged(tmp_path / "j.jsonl", answers, judges)
    found = figures(evaluated, "mine")
    assert (found["wins"], found["losses"], found["first"], len(server.texts)) == (0, 0, 1, 10)


async def test_the_judge_is_not_told_who_answered(tmp_path: Path) -> None:
    answers = write(tmp_path, secretmethod={"a?": "1"}, base={"a?": "2"})
    with judge(first) as (server, judges):
        await judged(tmp_path / "j.jsonl", answers, judges, asked=("pair",))
    assert len(server.bodies) == 2
    assert not any(name in json.dumps(body) for body in server.bodies for name in ("secretmethod", "base"))


def test_the_reward_that_steers_does_not_compare(tmp_path: Path) -> None:
    for gold, tables in (("gold", ["gold against vanilla, paired by prompt"]), ("steering", [])):
        answers = read([benched(tmp_path / f"{gold}.jsonl", gold)])
        evaluated = EvaluationReport(answers, "vanilla", Judgements({}), rewards={"reward": "steering", "gold": gold})
        found = evaluated.figures()
        assert list(dict.fromkeys(f.table for f in found if "against" in f.table)) == tables
        assert {f.name for f in found} & {"reward", "reward (it steered)"} == {"reward (it steered)"}
        assert evaluated.held_out is bool(tables)


async def test_a_reward_that_is_no_number_is_a_failure(tmp_path: Path) -> None:
    answers = write(tmp_path, mine={"a?": "fine", "b?": "broken"}, base={"a?": "fine too", "b?": "fine"})
    session = Session(Journal.open(tmp_path / "j.jsonl", HEADER))
    work = Evaluation(session)
    reward = cards.rewards.FunctionReward(lambda _, text: math.nan if "broken" in text else len(text), name="gold")
    await work.grade(reward, answers.all)
    assert len(session.errors) == 1
    assert "must return finite numbers" in session.errors[0]
    rewards, anew = {"gold": "gold"}, frozenset({"gold"})
    evaluated = EvaluationReport(answers, "base", Judgements.of(session.rows), rewards=rewards, regraded=anew)
    assert figures(evaluated, "mine", "gold against base")["pairs"] == 1
    assert figures(evaluated, "mine", "answers")["gold"] == 5.0  # of " fine", the only one there is
    assert grade_key("gold", answers.systems["mine"][1]) not in {row["key"] for row in session.rows}


def test_answers_end_at_the_end_token_and_within_the_budget() -> None:
    engine = mock(end=" ")
    for seed in range(30):
        result = cards.Decoder(engine, None, "vanilla")("ab", seed=seed, max_tokens=12)
        assert len(result.token_ids) <= 12
        assert not engine.end_ids & set(result.token_ids[:-1])
        assert (result.token_ids[-1] in engine.end_ids) is (result.finish_reason == "stop")


def test_answers_that_were_cut_off_and_segments_taken_untested_are_reported(tmp_path: Path) -> None:
    path = Path(benched(tmp_path / "b.jsonl"))
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    rows[0]["usage"] |= {"accepted": 1, "fallbacks": 3}
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    evaluated = EvaluationReport(read([str(path)]), "vanilla", Judgements({}))
    found = figures(evaluated, "vanilla", "answers")
    assert found["cut off"] == 1.0
    assert found["untested"] > 0.2
    assert figures(evaluated, "best-of-n:n=3", "answers")["untested"] == 0


def test_the_reward_of_the_bare_prompt_is_on_the_books() -> None:
    scored: list[str] = []

    def count(prompt: str, text: str) -> float:
        scored.append(text)
        return text.count("b")

    result = cards.Decoder(mock(), count, cards.CARDS(target=1.0, beta=5.0, width=1))("ab", max_tokens=12)
    assert scored.count("") == 1
    assert result.usage.rm_calls == len(scored)


def test_rewards_read_conversations_in_their_own_template(tmp_path: Path) -> None:
    turns = [("user", "Hi."), ("assistant", "Hello!"), ("user", "A joke?")]
    messages: list[dict[str, str]] = [{"role": role, "content": said} for role, said in turns]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, "answer": "Knock, knock."}), encoding="utf-8")
    [answer] = read([str(tmp_path / "a.jsonl")]).all
    reward = ClassifierReward.load("tiny", device="cpu")
    reward.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    ids = reward.tokens(prompt_of(answer), response_of(answer))
    end = reward.tokenizer.eos_token
    expected = f"[user] Hi.{end}[assistant] Hello!{end}[user] A joke?{end}[assistant] Knock, knock.{end}"
    assert reward.tokenizer.decode(ids) == expected


async def test_an_answer_is_worth_the_same_whoever_wrote_it_down(tmp_path: Path) -> None:
    """An answer of the embedded LM, with its tokens as the bench grades it, and as text from elsewhere."""
    engine: Any = TransformersEngine.load("tiny", device="cpu")
    reward = ClassifierReward.load("tiny-gold", device="cpu")
    asked: Any = [{"role": "user", "content": "Do you like dogs?"}]
    decoder = cards.Decoder(engine, None, "vanilla")
    finished = [
        r for seed in range(12) if (r := await decoder.agenerate(asked, seed=seed, max_tokens=48)).finish_reason == "stop"
    ]
    assert len(finished) > 2
    for result in finished:
        response = Response(result.text, result.token_ids, result.finish_reason)
        [expected] = await reward.score(engine.encode(asked), [response])
        row = {"messages": asked, "answer": result.text}
        (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
        [answer] = read([str(tmp_path / "a.jsonl")]).all
        [found] = await reward.score(prompt_of(answer), [response_of(answer)])
        assert found == pytest.approx(expected, abs=1e-3)
    await reward.aclose()
    await engine.aclose()

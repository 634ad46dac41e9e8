"""A bench runs exactly the work that its results lack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.mock_models import mock

import cards
from cards.cli.arms import arms_of
from cards.engines.base import Engine
from cards.errors import CardsError, SettingError, UnknownNameError
from cards.events import Event
from cards.methods.base import EngineLike, Method, Request
from cards.placement import Placement
from cards.registry import method_classes
from cards.rewards.base import Reward
from cards.settings import setting
from cards.study.bench.plan import Plan, preset, read
from cards.study.bench.run import REPETITION, header
from cards.study.bench.run import Bench as Work
from cards.study.models import Models
from cards.study.prompts import PromptRecord, sample
from cards.study.session import opened

PROMPTS = [PromptRecord(i, f"q{i}", text) for i, text in enumerate(["ab", "ba c", "cab"])]
PLAN = Plan(methods=("vanilla", "best-of-n:n=2,3"), form="raw", max_tokens=12, seeds=2, seed=7)


class Bench:
    """Runs plans on a mock, and counts the answers drawn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models = Models(
            mock(),
            cards.rewards.FunctionReward(lambda _, text: text.count("b")),
            cards.rewards.FunctionReward(lambda _, text: -text.count("c")),
        )

    def __call__(self, plan: Plan = PLAN) -> tuple[list[dict[str, Any]], list[str]]:
        with opened(self.path, header(plan, self.models), "test") as session:
            session.run(Work(plan, PROMPTS, self.models, session).run(arms_of(plan.methods)), "answers", self.models.run)
        written = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()][1:]
        assert written == json.loads(json.dumps(session.rows))
        return written, session.errors


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "results.jsonl")


def test_rows_are_what_the_decoder_gives_and_what_it_is_worth(bench: Bench) -> None:
    rows, errors = bench()
    assert errors == []
    assert len(rows) == 3 * 3 * 2
    assert [(r["id"], r["seed"]) for r in rows if r["label"] == "vanilla"] == [
        (f"q{i}", 7 + i + REPETITION * k) for k in range(2) for i in range(3)
    ]
    for row in rows:
        method = cards.methods.Vanilla() if row["method"] == "vanilla" else cards.methods.BestOfN(n=row["settings"]["n"])
        result = cards.Decoder(bench.models.engine, bench.models.reward, method)(row["prompt"], seed=row["seed"], max_tokens=12)
        assert (row["text"], row["token_ids"], row["finish_reason"]) == (
            result.text,
            list(result.token_ids),
            result.finish_reason,
        )
        clock = ("seconds", "lm_seconds", "rm_seconds")
        assert {k: v for k, v in row["usage"].items() if k not in clock} == {
            k: v for k, v in result.usage.to_dict().items() if k not in clock
        }
        assert (row["reward"], row["gold"]) == (row["text"].count("b"), -row["text"].count("c"))
        assert row["batch"]["requests"] == 6
        assert row["batch"]["seconds"] > 0
        assert (row["line"], row["kl_bound"] is None) == (row["method"], row["method"] == "vanilla")


def test_a_limit_draws_prompts_which_keep_their_seeds_and_neighbours(bench: Bench) -> None:
    plan = replace(PLAN, methods=("vanilla",), seeds=1, limit=2, sample_seed=3)
    few, _ = bench(plan)
    chosen = [question.id for question in sample(PROMPTS, 2, 3)]
    assert [row["id"] for row in few] == chosen == ["q0", "q2"]
    more, _ = bench(replace(plan, limit=None))
    assert {row["id"]: row["seed"] for row in more} == {"q0": 7, "q1": 8, "q2": 9}
    assert more[:2] == few


def test_log_probabilities_are_those_after_the_own_prompt_and_after_its_neighbour(bench: Bench) -> None:
    rows, _ = bench(replace(PLAN, methods=("vanilla",), seeds=1))
    engine = bench.models.engine
    neighbours = {"q0": "ba c", "q1": "ab", "q2": "ba c"}
    for row in rows:
        response = cards.events.Response(row["text"], tuple(row["token_ids"]), row["finish_reason"])
        for name, prompt in (("logprob", row["prompt"]), ("logprob_other", neighbours[row["id"]])):
            expected = asyncio.run(engine.logprobs(engine.encode(prompt), response)).sum()
            assert row[name] == pytest.approx(expected)


def test_a_second_run_draws_only_what_is_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = bench()
    drawn: list[int] = []
    generate = cards.Decoder.agenerate

    async def counted(self: cards.Decoder, *arguments: Any, **options: Any) -> cards.Result:
        drawn.extend([options["seed"]] if "seed" in options else [])  # warming up has none
        return await generate(self, *arguments, **options)

    monkeypatch.setattr(cards.Decoder, "agenerate", counted)
    assert bench() == (rows, [])
    assert drawn == []
    more, _ = bench(replace(PLAN, methods=("best-of-n:n=3,4", "vanilla"), seeds=3))  # other labels and lines, more of all
    assert more[: len(rows)] == rows
    assert sorted(drawn) == sorted(
        [7 + i + REPETITION * 2 for i in range(3)] * 2 + [7 + i + REPETITION * k for k in range(3) for i in range(3)]
    )
    lines = bench.path.read_text(encoding="utf-8").splitlines()
    bench.path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40], encoding="utf-8")  # killed while writing
    drawn.clear()
    again, _ = bench(replace(PLAN, methods=("best-of-n:n=3,4", "vanilla"), seeds=3))
    assert len(drawn) == 1
    assert [{**r, "usage": 0, "batch": 0} for r in again] == [{**r, "usage": 0, "batch": 0} for r in more]


def test_answers_that_a_killed_run_left_ungraded_are_graded(bench: Bench) -> None:
    rows, _ = bench()
    grades = ("reward", "gold", "logprob", "logprob_other", "batch")
    bare = [json.dumps({k: v for k, v in row.items() if k not in grades}) for row in rows]
    bench.path.write_text("\n".join([bench.path.read_text().splitlines()[0], *bare]) + "\n")
    again, _ = bench()
    assert again == [{k: v for k, v in row.items() if k != "batch"} for row in rows]  # how long they took is not known


def test_an_answer_that_fails_is_told_and_left_out_and_tried_again(bench: Bench) -> None:
    def picky(prompt: str, text: str) -> float:
        if prompt == "cab" and text:
            raise ValueError("no")
        return 0.0

    bench.models.reward = cards.rewards.FunctionReward(picky, name="<lambda>")
    rows, errors = bench(replace(PLAN, methods=("best-of-n:n=2",)))
    assert [row["id"] for row in rows] == ["q0", "q1"] * 2
    assert len(errors) == 2
    assert "best-of-n:n=2, prompt q2, seed 9: Reward function '<lambda>' raised ValueError: no" in errors[0]
    bench.models.reward = cards.rewards.FunctionReward(lambda _, text: 0.0)
    rows, errors = bench(replace(PLAN, methods=("best-of-n:n=2",)))
    assert ([row["id"] for row in rows], errors) == (["q0", "q1", "q0", "q1", "q2", "q2"], [])


def test_a_method_that_cannot_run_leaves_the_others_alone(bench: Bench) -> None:
    bench.models.reward = None
    rows, errors = bench(replace(PLAN, methods=("cards", "vanilla")))
    assert {row["method"] for row in rows} == {"vanilla"}
    assert rows[0]["reward"] is None
    assert errors == [error for error in errors if error.startswith("cards: Method 'cards' needs reward")] != []


def test_results_made_otherwise_are_refused(bench: Bench) -> None:
    bench()
    for change in ({"max_tokens": 13}, {"stop": ("a",)}, {"form": "dialogue"}, {"concurrency": 1}, {"prompts": "x"}):
        with pytest.raises(SettingError, match=f"made with {next(iter(change))}"):
            bench(replace(PLAN, **change))
    bench.models.gold = None
    with pytest.raises(SettingError, match="gold '<lambda>', now 'none'"):
        bench()


@dataclass(frozen=True, slots=True)
class Helped(Method):
    """Looks at its draft."""

    name: ClassVar[str] = "helped"
    needs: ClassVar[frozenset[str]] = frozenset({"segments"})
    draft: EngineLike = setting("small", help="A model.", loads="engine")
    helpers: str | tuple[Engine, ...] = setting("small,other", help="Models.", loads="engines")

    async def stream(self, request: Request, engine: Engine, reward: Reward | None) -> AsyncGenerator[Event, None]:
        async for event in cards.methods.Vanilla().stream(request, engine, reward):
            yield event


def test_models_that_settings_name_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> Engine:
        loaded.append((name, options))
        return mock(name=name)

    monkeypatch.setattr("cards.placement.load_engine", load)
    models = Models(mock(), placement=Placement(device="cpu"))
    first: Any = models.decoder(Helped()).method
    second: Any = models.decoder(Helped()).method
    assert loaded == [("small", {"device": "cpu"}), ("other", {"device": "cpu"})]
    assert first.draft is second.draft is first.helpers[0]


def test_presets_are_plans_whose_methods_exist() -> None:
    for name in ("tiny", "llama-7b", "mistral-7b", "llama-3-8b", "opt-6.7b", "opt-13b"):
        plan = preset(name)
        arms = arms_of(plan.methods)
        assert arms[0].method.name == "vanilla"
        assert {"best-of-n", "cards"} <= {arm.method.name for arm in arms} <= set(method_classes())
        assert len({json.dumps([arm.method.name, arm.settings]) for arm in arms}) == len(arms)
    paper: Any = next(arm.method for arm in arms_of(preset("llama-7b").methods) if arm.method.name == "cards")
    assert (paper.entropy_threshold, paper.target, paper.beta, paper.sampling.temperature) == (3.0, 8.5, 0.7, 0.7)
    with pytest.raises(UnknownNameError, match="Did you mean 'llama-7b'"):
        preset("lama-7b")


def test_a_plan_finds_its_prompts_beside_it_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    (tmp_path / "mine.txt").write_text("a\n")
    path.write_text('prompts = "mine.txt"\nmethods = ["vanilla"]\nlimit = 3\n')
    assert read(path) == Plan(prompts=str(tmp_path / "mine.txt"), methods=("vanilla",), limit=3)
    path.write_text('prompts = "xstest=mine.txt"\n')
    assert read(path).prompts == f"xstest={tmp_path / 'mine.txt'}"
    for text, said in (
        ("limt = 3", "Unknown entry of the plan .*Did you mean 'limit'"),
        ('limit = "3"', "limit in .* has a value of the wrong type: '3'"),
        ("limit = 0", "limit must be at least 1 or none, got 0"),
        ('methods = "vanilla"', "must be a list"),
        ("methods = []", "at least one method"),
        ('form = "chatty"', "form must be one of"),
        ("limit = ", "is not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(CardsError, match=said):
            read(path)
    with pytest.raises(SettingError, match="cannot be read"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("specs", "labels", "lines"),
    [
        (["vanilla", "best-of-n:n=2,4"], ["vanilla", "best-of-n:n=2", "best-of-n:n=4"], ["vanilla", "best-of-n", "best-of-n"]),
        (
            ["cards:beta=0.5,1, target=2 ,max-rejections=3"],
            [f"cards:target=2,max_rejections=3,beta={b}" for b in ("0.5", "1")],
            ["cards:target=2,max_rejections=3"] * 2,
        ),
        (
            ["cards:boundary=punctuation:\\,=,width=1"],
            ["cards:boundary=punctuation:\\,=,width=1"],
            ["cards:boundary=punctuation:\\,=,width=1"],
        ),
    ],
)
def test_methods_are_written_with_their_settings(specs: list[str], labels: list[str], lines: list[str]) -> None:
    arms = arms_of(specs)
    assert [arm.label for arm in arms] == labels
    assert [arm.line for arm in arms] == lines
    assert arms_of(labels)[0].method == arms[0].method
    if "punctuation" in specs[0]:
        assert arms[0].method == cards.CARDS(boundary=cards.Punctuation(marks=",="), width=1)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("crads", "Unknown method 'crads'. Did you mean 'cards'"),
        ("cards:bta=1", "Unknown setting of method 'cards': 'bta'. Did you mean 'beta'.*In the method 'cards:bta=1'"),
        ("cards:beta=hot", "--beta must be a number, got 'hot'"),
        ("cards:beta=-1", "beta must be positive"),
        ("cards:0.5", "form setting=value, got '0.5'"),
        ("best-of-n:n=2,2", "'best-of-n:n=2' is given twice"),
    ],
)
def test_a_wrong_method_is_said_with_its_place(spec: str, said: str) -> None:
    with pytest.raises(CardsError, match=said):
        arms_of([spec])


def test_the_header_names_the_libraries_of_the_models_only(bench: Bench) -> None:
    """Whatever else this process has imported, such as torch."""
    assert header(PLAN, bench.models)["versions"] == {"cards": cards.__version__}
    own = header(PLAN, Models(cards.load_engine("tiny"), cards.load_reward("tiny")))["versions"]
    assert own.keys() == {"cards", "torch", "transformers"}


def test_prompts_that_were_skipped_do_not_shift_the_other_prompt(bench: Bench) -> None:
    whole, _ = bench(replace(PLAN, methods=("vanilla",)))
    bench.path.unlink()
    left = [PROMPTS[0], PROMPTS[2]]
    with opened(bench.path, header(PLAN, bench.models), "test") as session:
        session.run(Work(PLAN, left, bench.models, session).run(arms_of(["vanilla"])), "answers", bench.models.run)
    own, cut = ({row["number"]: row["logprob_other"] for row in rows} for rows in (whole, session.rows))
    assert cut.keys() == {0, 2}
    assert cut[0] != own[0]  # the prompt after it is number 2 now

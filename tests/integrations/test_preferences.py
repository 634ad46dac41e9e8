"""Pairs are what was accepted before what was refused, with its prompt, and TRL learns from the file as it is."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from statistics import mean

import pytest
import torch
from typer.testing import CliRunner

import cards.cli
from cards import CARDS, Decoder, FixedLength
from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import RewardError, SettingError
from cards.events import Message
from cards.integrations.preferences import PreferencePair, preferences, response_pairs, segment_pairs, write
from cards.methods import BestOfN, Vanilla
from cards.rewards import FunctionReward

TRL = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory")  # its own
CHATS: list[list[Message]] = [
    [{"role": "user", "content": text}]
    for text in ("Do you like films?", "Tell me about your dog.", "Is it cold where you live?")
]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine.load("tiny")


@pytest.fixture(scope="module")
def reward() -> ClassifierReward:
    return ClassifierReward.load("tiny")


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_segments_continue_what_was_accepted_before_them(engine: TransformersEngine, reward: ClassifierReward) -> None:
    method = CARDS(target=2.0, boundary=FixedLength(maximum=6))
    decoder = Decoder(engine, reward, method)
    for number, chat in enumerate(CHATS):
        result = decoder(chat, seed=number, trace=True, max_tokens=64)
        prompt = engine.encode(chat)
        pairs = list(segment_pairs(prompt, result))
        assert bool(pairs) == (result.finish_reason == "stop")
        whole = prompt.text + result.text
        for pair in pairs:
            assert isinstance(pair.prompt, str)
            assert pair.prompt + pair.chosen == whole
            assert pair.score_chosen > pair.score_rejected
        before = prompt.text
        for segment in result.segments if pairs else ():
            worse = [s for s in segment.rejected if s.reward is not None and s.reward < (segment.reward or 0)]
            refused = {s.text: s.reward for s in worse if s.text != whole[len(before) :]}  # by rounding alone
            assert {p.rejected: p.score_rejected for p in pairs if p.prompt == before} == refused
            before += segment.text
    pairs = list(preferences(decoder, CHATS, max_tokens=64, repeats=2))
    assert len(pairs) > 10
    assert len({(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}) == len(pairs)
    wide = list(preferences(decoder, CHATS, max_tokens=64, repeats=2, gap=1.0))
    assert [p.rejected for p in wide] == [p.rejected for p in pairs if p.score_chosen - p.score_rejected > 1.0]
    assert 0 < len(wide) < len(pairs)


def test_answers_are_the_best_against_the_worst(engine: TransformersEngine, reward: ClassifierReward) -> None:
    decoder = Decoder(engine, reward, BestOfN(n=6))
    results = [decoder(chat, seed=number, trace=True, max_tokens=48) for number, chat in enumerate(CHATS)]
    pairs = list(preferences(decoder, CHATS, max_tokens=48))
    assert len(pairs) == 3
    for chat, result, pair in zip(CHATS, results, pairs, strict=True):
        drawn = [result.segments[0], *result.segments[0].rejected]
        best = max((s for s in drawn if s.finish_reason == "stop"), key=lambda s: s.reward or 0.0)
        worst = min(drawn, key=lambda s: s.reward or 0.0)
        assert pair.row() == {
            "prompt": chat,
            "chosen": [{"role": "assistant", "content": best.text.strip()}],
            "rejected": [{"role": "assistant", "content": worst.text.strip()}],
            "score_chosen": pytest.approx(best.reward, abs=1e-4),  # by what else was in the batch
            "score_rejected": pytest.approx(worst.reward, abs=1e-4),
        }
    several = Decoder(engine, reward, BestOfN(n=1)).batch([CHATS[0]] * 6, trace=True, max_tokens=48)
    [pair] = response_pairs(CHATS[0], several)
    assert pair.score_chosen == max(r.reward or 0 for r in several if r.finish_reason == "stop")
    assert pair.score_rejected == min(r.reward or 0 for r in several)


def test_answers_that_were_cut_off_teach_no_ending(engine: TransformersEngine, reward: ClassifierReward) -> None:
    for method in (BestOfN(n=4), CARDS(target=0.0)):
        cut = Decoder(engine, reward, method)(CHATS[1], trace=True, max_tokens=3)
        assert cut.finish_reason == "length"
        assert not list(response_pairs(CHATS[1], [cut]))
        assert not list(segment_pairs(engine.encode(CHATS[1]), cut))


def test_what_makes_no_pairs_is_refused_and_what_fails_is_left_out(engine: TransformersEngine) -> None:
    def short(prompt: str, response: str) -> float:
        if "dog" in prompt:
            raise RewardError("no dogs")
        return -float(len(response))

    decoder = Decoder(engine, FunctionReward(short), BestOfN(n=4))
    with pytest.warns(UserWarning, match=r"No pairs for prompt number 1: .*no dogs"):
        pairs = list(preferences(decoder, CHATS, max_tokens=32))
    assert [pair.prompt for pair in pairs] == [tuple(CHATS[0]), tuple(CHATS[2])]
    with pytest.raises(SettingError, match="'best-of-n' gives no pairs"):
        list(preferences(decoder, CHATS, by="segments"))
    with pytest.raises(SettingError, match="gap"):
        list(preferences(decoder, CHATS, gap=-1.0))
    assert not list(preferences(Decoder(engine, None, Vanilla()), CHATS[:1], max_tokens=8))


def test_the_command_writes_both_forms(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Do you like films?\nTell me about your dog.\n")
    for name, more in (("a.jsonl", ()), ("s.parquet", ("--method", "stars", "--target", "1", "--max-tokens", "48"))):
        ran = CliRunner().invoke(
            cards.cli.app,
            [
                "preferences",
                "--prompts",
                str(tmp_path / "prompts.txt"),
                "--out",
                str(tmp_path / name),
                "--max-tokens",
                "40",
                *more,
            ],
        )
        assert ran.exit_code == 0, ran.output
        assert "pairs of 2 prompts are in" in ran.stderr
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == ["Do you like films?", "Tell me about your dog."]
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert table
    assert all(row["prompt"].startswith("\n\nHuman:") and row["score_chosen"] > row["score_rejected"] for row in table)
    for arguments, message in (
        (["pairs.txt"], "must be a .jsonl or .parquet file"),
        (["pairs.jsonl", "--method", "vanilla"], "does not score responses"),
        (["pairs.jsonl", "--by", "segment"], "'segment' is not one of 'segments'"),
        (["pairs.jsonl", "--by", "segments"], "Method 'best-of-n' gives no pairs of segments"),
    ):
        ran = CliRunner().invoke(cards.cli.app, ["preferences", "--prompts", "tiny", "--limit", "1", "--out", *arguments])
        assert ran.exit_code == 2
        assert message in " ".join(ran.stderr.split())


def trained(folder: Path, pairs: list[PreferencePair], epochs: int) -> list[dict[str, float]]:
    """What DPOTrainer logs at each step on the file of these pairs; the tuned LM is in `folder`/tuned."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    write(folder / "pairs.jsonl", pairs)
    config = DPOConfig(
        output_dir=str(folder / "work"),
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        num_train_epochs=epochs,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        seed=0,
    )
    data = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "cache"))
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(TINY / "lm", dtype=torch.float32),
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(TINY / "lm"),
    )
    trainer.train()
    trainer.save_model(str(folder / "tuned"))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: float(entry[name]) for name in ("loss", "rewards/margins", "rewards/accuracies")} for entry in logged]


@TRL
def test_trl_trains_on_the_file_as_it_is_and_the_reward_rises(
    tmp_path: Path, engine: TransformersEngine, reward: ClassifierReward
) -> None:
    decoder = Decoder(engine, reward, BestOfN(n=4))
    pairs = [pair for seed in range(0, 40, 4) for pair in preferences(decoder, CHATS, seed=seed, max_tokens=24)]
    steps = trained(tmp_path, pairs, 3)
    assert mean(step["loss"] for step in steps[-3:]) < mean(step["loss"] for step in steps[:3]) - 0.1
    tuned = TransformersEngine.load(str(tmp_path / "tuned"))
    prompts = CHATS * 8
    before, after = (
        [r.reward or 0.0 for r in Decoder(lm, reward, BestOfN(n=1)).batch(prompts, seed=1000, max_tokens=24)]
        for lm in (engine, tuned)
    )
    assert mean(after) > mean(before) + 0.3


@TRL
@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_trl_trains_on_segments_too(tmp_path: Path, engine: TransformersEngine, reward: ClassifierReward) -> None:
    decoder = Decoder(engine, reward, CARDS(target=2.0, boundary=FixedLength(maximum=6)))
    pairs = list(preferences(decoder, CHATS, repeats=8, max_tokens=64))[:64]
    assert len(pairs) == 64
    steps = trained(tmp_path, pairs, 2)
    assert steps[0]["rewards/margins"] == pytest.approx(0.0, abs=0.01)  # of the LM over itself
    assert mean(step["rewards/margins"] for step in steps[-4:]) > 0.2
    assert mean(step["rewards/accuracies"] for step in steps[-4:]) > 0.7


@TRL
def test_distillation_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def distill(*arguments: str) -> str:
        small = ("--out", str(tmp_path / "out"), "--held-out", "60", "--n", "2", "--pairs", "1", "--samples", "1")
        monkeypatch.setattr("sys.argv", ["distill.py", *small, "--max-tokens", "12", "--epochs", "1", *arguments])
        runpy.run_path(str(Path(__file__).parents[2] / "examples" / "distill.py"), run_name="__main__")
        return capsys.readouterr().out

    first = distill("--rounds", "1")
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/**/*") if path.is_file()}
    (tmp_path / "out/round-2/work").mkdir(parents=True)  # what a killed run leaves
    (tmp_path / "out" / "round-2" / "work" / "half").touch()
    second = distill("--rounds", "2")
    rows = second[second.index("round  tokens") :].splitlines()
    assert [row.split()[0] for row in rows] == ["round", "0", "1", "2"]
    assert rows[:3] == first[first.index("round  tokens") :].splitlines()
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    assert (tmp_path / "out/round-2/model/model.safetensors").exists()
    assert not (tmp_path / "out/round-2/work").exists()

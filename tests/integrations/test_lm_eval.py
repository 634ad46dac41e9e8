"""The harness itself, on tasks of its own kinds: texts are a Decoder's, log-likelihoods those of the harness's own model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::cards.errors.UnreachableTargetWarning"
)

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from cards import CARDS, Decoder  # noqa: E402
from cards.backends.files import TINY  # noqa: E402
from cards.errors import SettingError, UnknownNameError  # noqa: E402
from cards.integrations.lm_eval import CardsLM, main  # noqa: E402
from cards.methods import BestOfN, Vanilla  # noqa: E402

QUESTIONS = ["Do you like films?", "What is your name?", "Tell me about your dog."]
GENERATE = """
task: cards_talk
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{good}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 24, do_sample: true, temperature: 0.9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
CHOOSE = """
task: cards_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "\\n\\nHuman: {{question}}\\n\\nAssistant:"
doc_to_choice: "{{[good, bad]}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
BAD = ["Zxq vv the of of", "Plmk ooo qqq", "Wrtz the a a a"]
GOOD = ["Yes, I do.", "I am not sure.", "He is a good dog."]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "data.jsonl"
    rows = [{"question": q, "good": g, "bad": b} for q, g, b in zip(QUESTIONS, GOOD, BAD, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("talk", GENERATE), ("choice", CHOOSE)):
        (tmp_path / f"{name}.yaml").write_text(text.replace("FILE", str(data)))
    return tmp_path


def harness(tasks: Path, *arguments: str, model_args: str) -> tuple[Any, str]:
    """Runs the module as one would on a command line: (results, standard output and error)."""
    command = [sys.executable, "-m", "cards.integrations.lm_eval", "--model", "cards", "--model_args", model_args]
    command += ["--include_path", str(tasks), "--output_path", str(tasks / "out"), "--log_samples", *arguments]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=os.environ | quiet, cwd=tasks, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def samples(tasks: Path, name: str) -> list[Any]:
    [path] = tasks.glob(f"out/**/samples_{name}_*.jsonl")
    return sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: int(row["doc_id"]))


def test_the_harness_runs_tasks_of_both_kinds_to_their_end(tasks: Path) -> None:
    code, told = harness(
        tasks,
        *("--tasks", "cards_talk,cards_choice", "--apply_chat_template"),
        model_args="pretrained=tiny,reward=tiny,method=cards,target=2,seed=3",
    )
    assert code == 0, told
    assert "cards_talk" in told
    assert "exact_match" in told
    [results] = tasks.glob("out/**/results_*.json")
    figures = json.loads(results.read_text())["results"]
    assert 0 <= figures["cards_choice"]["acc,none"] <= 1
    chats: list[Any] = [[{"role": "user", "content": question}] for question in QUESTIONS]
    method = CARDS(target=2.0, temperature=0.9)
    expected = Decoder("tiny", "tiny", method).batch(chats, seed=3, max_tokens=24, stop="\n")
    assert [row["resps"][0][0] for row in samples(tasks, "cards_talk")] == [result.text for result in expected]


def test_a_slip_is_one_line_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: CardsLM.create_from_arg_string("method=cards,tarjet=2"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Unknown setting of method 'cards': 'tarjet'. Did you mean 'target'?")


def asked(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture(scope="module")
def lm() -> CardsLM:
    return CardsLM("tiny", "tiny", "best-of-n", n=2)


@pytest.fixture(scope="module")
def own() -> Any:
    return HFLM(pretrained=str(TINY / "lm"), device="cpu", dtype="float32", batch_size=1, max_length=512)


def test_loglikelihoods_are_those_of_the_harness(lm: CardsLM, own: Any) -> None:
    long = "the dog and the cat " * 200
    pairs = [("The dog", " is here"), ("", "Hello there"), ("A space ", "after it"), ("I am", " a"), (long, " and a bird")]
    text = "\n\nHuman: Do you like films?\n\nAssistant:"
    pairs.append((text, own.tokenizer.decode(_greedy(own, text))))
    requests = [asked("loglikelihood", *pair) for pair in pairs]
    ours, theirs = lm.loglikelihood(requests, disable_tqdm=True), own.loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}
    rolling = [asked("loglikelihood_rolling", "A short text."), asked("loglikelihood_rolling", long * 2)]
    assert lm.loglikelihood_rolling(rolling) == pytest.approx(own.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-5)


def _greedy(own: Any, text: str) -> Any:
    inputs = own.tokenizer(text, return_tensors="pt")
    return own.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]


def test_greedy_vanilla_writes_what_the_harness_does(own: Any) -> None:
    requests = [
        asked("generate_until", f"\n\nHuman: {q}\n\nAssistant:", {"until": [".", "?"], "max_gen_toks": 30}) for q in QUESTIONS
    ]
    assert CardsLM(method="vanilla").generate_until(requests) == own.generate_until(requests, disable_tqdm=True)


def test_sampling_is_the_methods_then_the_tasks_and_never_greedy_for_choices(lm: CardsLM) -> None:
    text = f"\n\nHuman: {QUESTIONS[0]}\n\nAssistant:"

    def texts(model: CardsLM, **generation: Any) -> list[str]:
        return model.generate_until([asked("generate_until", text, {"max_gen_toks": 12, **generation})] * 2)

    def decoded(method: Any) -> list[str]:
        return [r.text for r in Decoder(lm.decoder.engine, lm.decoder.reward, method).batch([text] * 2, max_tokens=12)]

    assert texts(lm, do_sample=True, temperature=1.2, top_k=9) == decoded(BestOfN(n=2, temperature=1.2, top_k=9))
    assert texts(lm, do_sample=False) == texts(lm, temperature=0.0) == decoded(BestOfN(n=2))
    warm = CardsLM(method="vanilla", temperature=0.5)
    assert texts(warm, do_sample=False) == decoded(Vanilla(temperature=0.5))
    assert texts(warm, do_sample=False)[0] != texts(warm, do_sample=False)[1]


def test_a_prompt_too_long_is_cut_and_arguments_that_do_not_apply_are_told(
    lm: CardsLM, caplog: pytest.LogCaptureFixture
) -> None:
    long = "the dog and the cat " * 200
    [text] = lm.generate_until([asked("generate_until", long, {"max_gen_toks": 8, "repetition_penalty": 1.2})])
    assert "truncated to its last 504" in caplog.text
    assert "repetition_penalty" in caplog.text
    ids = lm.tok_encode(long)[-504:]
    again = lm.decoder(lm.tokenizer.decode(ids), max_tokens=8)
    assert text == again.text
    with pytest.raises(SettingError, match="must leave room"):
        lm.generate_until([asked("generate_until", "Hello", {"max_gen_toks": 512})])
    with pytest.raises(UnknownNameError, match="Did you mean 'target'"):
        CardsLM(method="cards", targt=1)

"""Models of the Hugging Face Hub, with revisions and with their own code. The Hub is simulated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.random_models import language_model, reward_model, word_tokenizer
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, PreTrainedModel

import cards
from cards.backends.checkpoint import Checkpoint
from cards.backends.hub import Repository
from cards.errors import CardsError, ModelError, UnknownNameError

CODE = """
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

class OwnForCausalLM(LlamaForCausalLM):
    pass

class OwnReward(LlamaForSequenceClassification):
    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 10
        return outputs
"""


def save(folder: Path, model: PreTrainedModel, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub with revisions `main` and `v2` of org/model, on a machine without network access."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    model = tmp_path / "hub" / "models--org--model"
    (model / "refs").mkdir(parents=True)
    for revision, sha, seed in (("main", "a" * 40, 0), ("v2", "b" * 40, 1)):
        (model / "refs" / revision).write_text(sha)
        save(model / "snapshots" / sha, language_model("llama", seed=seed), max_shard_size="10KB")
    return model / "snapshots"


def test_without_network_access_the_cache_is_used(cache: Path) -> None:
    engine = cards.load_engine("org/model", slots=2)
    assert engine.name == "org/model"


def test_a_revision_is_part_of_the_name(cache: Path) -> None:
    weights = [
        cards.load_engine(name, slots=2).model.lm_head.weight.flatten().tolist()  # type: ignore[attr-defined]
        for name in ("org/model", "org/model@v2")
    ]
    assert weights[0] != weights[1]
    with pytest.raises(ModelError, match="'org/model@v3' is neither a folder nor in the cache"):
        cards.load_engine("org/model@v3")


def test_missing_files_of_a_snapshot_are_named(cache: Path) -> None:
    max((cache / ("a" * 40)).glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"'org/model' lacks 1 of \d+ weight files"):
        cards.load_engine("org/model")


def test_a_model_that_is_not_found_is_reported_once(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, error in (("org/other", ModelError), ("other", UnknownNameError)):
        with pytest.raises(error):
            cards.load_engine(name)
    assert capfd.readouterr() == ("", "")


def test_weights_are_downloaded_after_all_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = save(tmp_path / "stored", language_model("llama"), max_shard_size="10KB")
    here = shutil.copytree(stored, tmp_path / "here", ignore=shutil.ignore_patterns("*.safetensors"))
    files = {path.name for path in stored.iterdir()}
    fetched: list[str] = []
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: listing(files))

    def note(self: Repository, patterns: list[str]) -> Path:
        fetched.extend(patterns)
        return here

    monkeypatch.setattr(Repository, "download", note)
    checkpoint = Checkpoint.open("org/model", "lm")
    checkpoint.check_weights()
    assert not any("safetensors" in pattern for pattern in fetched)

    def download(self: Repository, patterns: list[str]) -> Path:
        for file in patterns:
            shutil.copy(stored / file, here / file)
        return here

    monkeypatch.setattr(Repository, "download", download)
    checkpoint.fetch()
    assert {path.name for path in here.iterdir()} == files
    files.remove(max(file for file in files if file.endswith(".safetensors")))
    monkeypatch.setattr(Repository, "download", lambda self, patterns: here)
    with pytest.raises(ModelError, match="lacks 1 of"):
        Checkpoint.open("org/model", "lm").check_weights()


def listing(files: set[str]) -> Any:
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])


def test_a_token_is_passed_on_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def refuse(self: HfApi, name: str, **options: Any) -> None:
        given.append(options["token"])
        raise ConnectionError("refused")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(ModelError) as caught:
        cards.load_engine("org/private", token="hf_secret")
    assert given == ["hf_secret"]
    assert "hf_secret" not in f"{caught.value!r} {Repository('org/private', None, 'hf_secret')!r}"


def own_code(folder: Path, model: PreTrainedModel, **classes: str) -> Path:
    """Save a model whose code comes with it. `classes` are the entries of its auto_map."""
    save(folder, model)
    (folder / "own.py").write_text(CODE)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"auto_map": classes, "architectures": [next(iter(classes.values())).removeprefix("own.")]}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("auto", ["AutoModelForSequenceClassification", "AutoModel"])
def test_code_of_a_reward_model_runs_only_if_it_is_trusted(tmp_path: Path, auto: str) -> None:
    model = reward_model("llama")
    folder = own_code(tmp_path / f"rm{auto}", model, **{auto: "own.OwnReward"})
    with pytest.raises(ModelError, match=r"is a OwnReward, which needs Python code .* \(--trust-remote-code\)"):
        cards.load_reward(str(folder))
    reward: Any = cards.load_reward(str(folder), trust_remote_code=True)
    assert type(reward.model).__name__ == "OwnReward"


def test_code_of_an_lm_runs_only_if_it_is_trusted(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "lm", language_model("llama"), AutoModelForCausalLM="own.OwnForCausalLM")
    with pytest.raises(ModelError, match="needs Python code"):
        cards.load_engine(str(folder))
    engine: Any = cards.load_engine(str(folder), trust_remote_code=True, slots=2)
    assert type(engine.model).__name__ == "OwnForCausalLM"


def test_configurations_with_their_own_code_are_refused_without_a_question(tmp_path: Path) -> None:
    folder = save(tmp_path / "lm", language_model("llama"))
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="is of type 'own', which needs Python code"):
        cards.load_engine(str(folder))
    del settings["auto_map"]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"is of type 'own', which transformers [\d.]+ does not know"):
        cards.load_engine(str(folder))


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "rm", reward_model("llama"))
    caplog.clear()
    capfd.readouterr()
    cards.load_reward(str(folder), slots=2)
    with pytest.raises(CardsError):
        cards.load_engine(str(folder))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    language_model("llama").save_pretrained(tmp_path / "lm")
    AutoModelForCausalLM.from_pretrained(tmp_path / "lm")  # as before, outside of our loaders
    assert "Loading weights" in capfd.readouterr().err

"""Models of a command are checked, with those of its settings, before the weights of the first one are read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.random_models import language_model, reward_model, word_tokenizer

from cards.cli.models import load_models
from cards.errors import CardsError, MismatchError, ModelError, UnknownNameError
from cards.placement import Placement
from cards.registry import make_method


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an LM (`lm`) and a reward model (`rm`), in a process that cannot read weights."""
    for name, model in (("lm", language_model("llama")), ("rm", reward_model("llama"))):
        model.save_pretrained(tmp_path / name)
        word_tokenizer().save_pretrained(tmp_path / name)
    monkeypatch.setattr("cards.backends.local.loading._load", lambda *_: pytest.fail("weights were read"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reward", "method", "message"),
    [
        ("lm", "best-of-n", "has no trained score head"),
        ("rm+lm", "best-of-n", "has no trained score head"),
        ("process:lm", "best-of-n", "has no trained score head"),
        ("implicit:lm,rm", "best-of-n", "it is a sequence classifier"),
        ("tinny", "best-of-n", "Unknown reward model 'tinny'. Did you mean 'tiny'"),
        ("length:3-", "cascade", "has no trained score head"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused_first(folders: Path, reward: str, method: str, message: str) -> None:
    settings = {"guide": "lm"} if method == "cascade" else {}
    with pytest.raises(CardsError, match=message):
        load_models("lm", reward, "none", Placement(), [make_method(method, **settings)])


def test_a_gold_reward_a_draft_and_models_of_settings_are_checked(folders: Path) -> None:
    (folders / "lm2").mkdir()
    with pytest.raises(ModelError, match="no trained score head"):
        load_models("lm", "rm", "lm", Placement())
    with pytest.raises(ModelError, match=r"'lm2' has no config.json"):
        load_models("lm", "rm", "none", Placement(draft="lm2"))
    with pytest.raises(ModelError, match=r"'lm2' has no config.json"):
        load_models("lm", "none", "none", Placement(), [make_method("contrastive-decoding", amateur="lm2")])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_damaged_configurations_are_refused_first(folders: Path, file: str) -> None:
    for name in (file, "tokenizer_config.json") if file == "tokenizer.json" else (file,):
        (folders / "rm" / name).write_text("{")
    with pytest.raises(CardsError, match=r"rm"):
        load_models("lm", "rm", "none", Placement())


def test_models_that_must_share_a_tokenizer_are_compared_first(folders: Path) -> None:
    shutil.copytree("lm", "other")
    word_tokenizer(40).save_pretrained("other")
    with pytest.raises(MismatchError, match=r"'other' and 'lm' have different tokenizers. Choose another model with --draft"):
        load_models("lm", "none", "none", Placement(draft="other"))
    with pytest.raises(MismatchError, match="Choose another model with --amateur"):
        load_models("lm", "none", "none", Placement(), [make_method("contrastive-decoding", amateur="other")])


def test_a_misspelt_reward_lists_rewards_and_a_misspelt_lm_lists_lms(folders: Path) -> None:
    with pytest.raises(UnknownNameError, match="Known: lm, rm, tiny, tiny-gold"):
        load_models("lm", "no-such-reward", "none", Placement())
    with pytest.raises(UnknownNameError, match="Known: lm, rm, tiny, tiny-aligned, tiny-draft"):
        load_models("no-such-model", "rm", "none", Placement())


def test_a_misspelt_name_is_refused_before_models_are_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom cards.cli.models import load_models\nfrom cards.errors import UnknownNameError\n"
        "from cards.placement import Placement\n"
        "try: load_models('no-such-model', 'tiny', 'none', Placement())\n"
        "except UnknownNameError: print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")

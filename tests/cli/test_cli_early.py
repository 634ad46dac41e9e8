"""A command reports everything that is known without weights before it reads any."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.random_models import byte_tokenizer, language_model, reward_model, word_tokenizer
from transformers import RobertaConfig, RobertaForSequenceClassification
from typer.testing import CliRunner

import cards
import cards.cli
from cards.backends.check import check_vllm
from cards.backends.files import Kind
from cards.backends.local import loading
from cards.engines.loader import check_engine
from cards.errors import CardsError, ModelError, UnknownNameError
from cards.rewards.loader import check_reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LMs without a chat template, one with another tokenizer, and a reward model with the outputs `kind` and `rude`."""
    folder = tmp_path_factory.mktemp("models")
    rm = reward_model("llama", labels=2)
    roberta: dict[str, Any] = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_labels": 1,
    }
    encoder = RobertaForSequenceClassification(RobertaConfig(vocab_size=100, max_position_embeddings=128, **roberta))
    rm.config.id2label = {0: "kind", 1: "rude"}
    for name, model in (("lm", language_model("llama")), ("other", language_model("llama")), ("rm", rm), ("encoder", encoder)):
        model.save_pretrained(folder / name)
        (byte_tokenizer() if name == "other" else word_tokenizer()).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as weights would be read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_load", read)
    monkeypatch.setattr("cards.cli.stdin.at_terminal", lambda: True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"has 2 outputs: 0 \(kind\), 1 \(rude\)"),
        ("?output=rud", "Unknown reward output 'rud'"),
        ("?output=2", "output must be between 0 and 1"),
        ("?output=1,2,3", "output must have 2 weights"),
        ("?output=rude&form=dialogue", "form must be 'pair', 'plain', a chat template"),
    ],
)
def test_options_of_a_reward_are_checked_before_weights_are_read(folder: Path, options: str, message: str) -> None:
    with pytest.raises(CardsError, match=message):
        cards.load_reward(f"{folder / 'rm'}{options}")
    ran = CliRunner().invoke(
        cards.cli.app, ["generate", "w2", "--model", str(folder / "lm"), "--reward", f"{folder / 'rm'}{options}"]
    )
    assert ran.exit_code == 2


@pytest.mark.parametrize(("role", "limit"), [("lm", 128), ("rm", 128), ("encoder", 126)])
def test_a_context_beyond_the_limit_of_a_model_is_refused_before_weights_are_read(folder: Path, role: str, limit: int) -> None:
    check, load = (check_engine, cards.load_engine) if role == "lm" else (check_reward, cards.load_reward)
    name = f"{folder / role}?output=0" if role == "rm" else str(folder / role)
    for function in (check, load):
        with pytest.raises(CardsError, match=f"context must be between 2 and {limit} for this model, got {limit + 1}"):
            function(name, context=limit + 1)
    assert len(check(name, context=limit)) == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("lm", {"context": 129}, "context must be between 2 and 128"),
        ("lm", {"dtype": "float8"}, "Unknown dtype 'float8'"),
        ("lm", {"slots": 0}, "slots must be at least 1"),
        ("lm", {"speculative_config": {}}, "speculative_config is not supported"),
        ("rm", {}, r"has 2 outputs: 0 \(kind\), 1 \(rude\)"),
        ("rm", {"output": "rude", "form": "dialogue"}, "form must be 'pair', 'plain', a chat template"),
        ("rm", {"output": 1, "pooler_config": {}}, "pooler_config cannot be set"),
    ],
)
def test_models_for_vllm_are_checked_before_vllm_is_imported(
    folder: Path, kind: Kind, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cards.backends.vllm.host", None)
    with pytest.raises(CardsError, match=message):
        check_vllm(str(folder / kind), kind, **options)


def test_a_missing_folder_and_a_damaged_configuration_are_reported_before_vllm(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Unknown model"):
        check_vllm(str(folder / "ml"), "lm")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        check_vllm(str(tmp_path), "lm")


VANILLA = ("--method", "vanilla")
EARLY = {
    "a chat option without a template": ((*VANILLA, "--system", "w3"), "give one with --chat-template"),
    "no such template": ((*VANILLA, "--chat-template", "none.jinja"), "The chat template must be an existing file"),
    "no template": ((*VANILLA, "--chat-template", "chatml"), "must be a .jinja file or Jinja text"),
    "no reward for a method": (("--reward", "none"), "Method 'cards' needs a reward, but --reward is none. Choose one"),
    "no default reward": ((), "Method 'cards' needs a reward, and only the embedded models have a default one"),
    "no reward for an inner method": (
        ("--method", "budget-forcing:inner=(best-of-n:n=2)", "--reward", "none"),
        "needs a reward",
    ),
    "another tokenizer of a draft": ((*VANILLA, "--draft", "{other}"), "have different tokenizers"),
    "another tokenizer of a model in a setting": (
        ("--method", "contrastive-decoding", "--amateur", "{other}"),
        "have different tokenizers. Choose another model with --amateur",
    ),
    "another tokenizer in a mixture": ((*VANILLA, "--mix", "proxy-tuning:tuned={other},untuned={lm}"), "different tokenizers"),
    "another tokenizer in an implicit reward": (("--reward", "implicit:{lm},{other}"), "have different tokenizers"),
}


@pytest.mark.parametrize("mistake", EARLY)
def test_a_mistake_is_reported_before_weights_are_read(folder: Path, mistake: str) -> None:
    arguments, message = EARLY[mistake]
    models = {"lm": folder / "lm", "other": folder / "other"}
    command = ["generate", "w2", "--model", str(folder / "lm"), *(argument.format(**models) for argument in arguments)]
    ran = CliRunner().invoke(cards.cli.app, command)
    assert (ran.exit_code, ran.exception.__class__) == (2, SystemExit), ran.output
    assert message in " ".join(ran.stderr.split())


def test_a_chat_template_for_a_base_model_is_accepted(folder: Path) -> None:
    command = ["generate", "w2", "--model", str(folder / "lm"), *VANILLA, "--system", "w3"]
    with pytest.raises(AssertionError, match="weights were read"):
        CliRunner().invoke(cards.cli.app, [*command, "--chat-template", "{{ messages[0].content }}"], catch_exceptions=False)


def test_a_chat_template_is_found_in_each_place_that_tokenizers_read(folder: Path, tmp_path: Path) -> None:
    from cards.backends.checkpoint import Checkpoint

    model = tmp_path / "lm"
    language_model("llama").save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    settings = model / "tokenizer_config.json"
    plain = json.loads(settings.read_text())
    assert Checkpoint.open(str(model), "lm").chats is False
    settings.write_text(json.dumps(plain | {"chat_template": "{{ messages }}"}))
    assert Checkpoint.open(str(model), "lm").chats is True
    settings.write_text(json.dumps(plain | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    assert Checkpoint.open(str(model), "lm").chats is None
    settings.write_text(json.dumps(plain))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert Checkpoint.open(str(model), "lm").chats is True

"""A command reports everything that is known without weights before it reads any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.random_models import language_model, reward_model, word_tokenizer
from typer.testing import CliRunner

import cards
import cards.cli
from cards.backends.local import engine as engines
from cards.backends.local import loading
from cards.errors import CardsError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LM without a chat template, and a reward model with the outputs `kind` and `rude`."""
    folder = tmp_path_factory.mktemp("models")
    rm = reward_model("llama", labels=2)
    rm.config.id2label = {0: "kind", 1: "rude"}
    for name, model in (("lm", language_model("llama")), ("rm", rm)):
        model.save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as weights would be read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "_load", read)
    monkeypatch.setattr(engines, "load", read)
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


@pytest.mark.parametrize(("arguments", "message"), [((), "which a chat needs"), (("w2", "--system", "w3"), "system messages")])
def test_a_missing_chat_template_is_reported_before_weights_are_read(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    command = ["generate", *arguments, "--model", str(folder / "lm"), "--method", "vanilla"]
    ran = CliRunner().invoke(cards.cli.app, command)
    assert (ran.exit_code, ran.exception.__class__) == (2, SystemExit)
    assert message in " ".join(ran.stderr.split())


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

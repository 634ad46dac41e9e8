"""A model that vLLM cannot load is refused before vLLM's processes start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.random_models import language_model, word_tokenizer

from cards.engines.loader import check_engine, load_engine
from cards.errors import CardsError
from cards.rewards.loader import check_reward, load_reward


@pytest.fixture(autouse=True)
def _starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("vLLM was started")

    monkeypatch.setattr("cards.backends.vllm.engine.Host", start)
    monkeypatch.setattr("cards.backends.vllm.rewards.Host", start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilisation": 0.3}, "Did you mean 'gpu_memory_utilization'"),
        ({"device": "cuda:7"}, "device must be auto or"),
        ({"context": 513}, "context must be between 2 and 512"),
        ({"dtype": "float8"}, "Unknown dtype 'float8'"),
    ],
)
def test_options_are_checked_before_vllm_starts(options: dict[str, Any], message: str) -> None:
    for function in (check_engine, load_engine, check_reward, load_reward):
        with pytest.raises(CardsError, match=message):
            function("vllm:tiny", **options)


def test_a_checked_model_has_its_weights_here_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    [lm], [rm] = check_engine("vllm:tiny", context=256), check_reward("vllm:tiny", context=256)
    lm.fetch()
    assert lm.shares_tokenizer(rm)
    with pytest.raises(CardsError, match="Did you mean 'tiny'"):
        check_engine("vllm:tinny")
    language_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CardsError, match="no trained score head"):
        check_reward(f"vllm:{tmp_path}")

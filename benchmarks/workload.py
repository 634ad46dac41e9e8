"""Shared parts of the benchmarks: prompts, random models of a given shape, and a record of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import cards
from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Message

HERE = Path(__file__).parent
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary
    "random-tiny": (128, 256, 2, 2, 1, 20000),
    "random-100m": (768, 2048, 12, 12, 12, 20000),
    "random-1b": (2048, 8192, 16, 32, 8, 128256),
    "random-8b": (4096, 14336, 32, 32, 8, 128256),
}


def prompts(turns: int = 3) -> list[list[Message]]:
    """Return 32 conversations: each question of turns.tsv after the `turns` question-answer pairs that follow it there."""
    lines = [line.split("\t") for line in (HERE / "turns.tsv").read_text(encoding="utf-8").splitlines()]
    conversations = []
    for i, (question, _) in enumerate(lines):
        before = [lines[(i + 1 + j) % len(lines)] for j in range(turns)]
        said: list[Message] = [
            {"role": role, "content": text} for turn in before for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        said.append({"role": "user", "content": question})
        conversations.append(said)
    return conversations


def machine(device: str, dtype: str) -> dict[str, object]:
    """Describe the machine and versions of a measurement."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cards": cards.__version__,
        "commit": commit,
    }


def random_pair(
    shape: str, device: str, dtype: torch.dtype, *, reward: str | None = None, **options: Any
) -> tuple[TransformersEngine, ClassifierReward]:
    """Return a random, seeded Llama LM and RM with the embedded tokenizer; only their speed is meaningful.

    reward: the shape of the RM, if it differs.
    """
    lm = _random_lm(shape, device, dtype)
    rm = _random_model(LlamaForSequenceClassification, reward or shape, device, dtype)
    tokenizer = AutoTokenizer.from_pretrained(TINY / "lm")
    engine = TransformersEngine(lm, tokenizer, **options, name=shape)
    return engine, ClassifierReward(rm, tokenizer, **options, name=reward or shape)


def random_engine(shape: str, device: str, dtype: torch.dtype, **options: Any) -> TransformersEngine:
    """Return a random, seeded Llama LM with the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY / "lm")
    return TransformersEngine(_random_lm(shape, device, dtype), tokenizer, **options, name=shape)


def _random_lm(shape: str, device: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    lm = _random_model(LlamaForCausalLM, shape, device, dtype)
    with torch.no_grad():  # spread the logits, so that the entropy varies
        lm.model.norm.weight.mul_(6.0)
    return lm


def _random_model(kind: Any, shape: str, device: str, dtype: torch.dtype) -> Any:
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=AutoTokenizer.from_pretrained(TINY / "lm").pad_token_id,
        id2label={0: "reward"},
        label2id={"reward": 0},
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return kind(config)
    finally:
        torch.set_default_dtype(torch.float32)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()

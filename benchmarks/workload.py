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


def random_pair(shape: str, device: str, dtype: torch.dtype, **options: Any) -> tuple[TransformersEngine, ClassifierReward]:
    """Return a random, seeded Llama LM and RM with the embedded tokenizer; only their speed is meaningful."""
    hidden, intermediate, layers, heads, key_heads, vocabulary = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(TINY / "lm")
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "reward"},
        label2id={"reward": 0},
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        lm, rm = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():  # spread the logits, so that the entropy varies
        lm.model.norm.weight.mul_(6.0)
    return TransformersEngine(lm, tokenizer, **options, name=shape), ClassifierReward(rm, tokenizer, **options, name=shape)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()

"""Responses of the base model to held-out prompts, and the scale of the reward models based on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from common import Job, Log, read_json, read_rows, write_json
from corpus import valid_dialogues
from lm_model import store
from rm_score import Scorer
from sampling import Draw, sample

DRAW = Draw(temperature=0.7, top_k=40, new_tokens=64)
SPREAD = 1.5
QUANTILES = (50, 75, 90, 95, 99)
SEED = 11


def held_out_prompts(data: Path) -> list[str]:
    prompts = [f"\n\nHuman: {turns[0]}\n\nAssistant:" for turns in valid_dialogues(data)]
    return prompts + [row["prompt"] for row in read_rows(data / "prompts" / "hh_test_prompts.jsonl.gz")]


def replies_of(name: str, job: Job) -> tuple[list[list[int]], list[list[int]]]:
    """Return (prompt ids, response ids) sampled from one of the causal models, once per training."""
    saved = job.runs / f"samples_{name}.json"
    if saved.exists():
        stored = read_json(saved)
        return stored["heads"], stored["replies"]
    tokenizer = AutoTokenizer.from_pretrained(job.out / "tokenizer")
    prompts = held_out_prompts(job.data)
    prompts = prompts[:: len(prompts) // job.part(len(prompts))]
    model = AutoModelForCausalLM.from_pretrained(job.out / name, dtype=torch.float32)
    heads = [ids[-384:] for ids in tokenizer(prompts, verbose=False)["input_ids"]]
    replies = sample(model, tokenizer, prompts, DRAW, SEED)
    write_json({"heads": heads, "replies": replies}, saved)
    return heads, replies


def load_scorer(name: str, out: Path) -> Scorer:
    model = AutoModelForSequenceClassification.from_pretrained(out / name, dtype=torch.float32)
    return Scorer(model, AutoTokenizer.from_pretrained(out / "tokenizer"))


def spread_of(rewards: np.ndarray) -> dict[str, float]:
    found = {"mean": float(rewards.mean()), "sd": float(rewards.std())}
    return found | {f"q{cut}": float(np.percentile(rewards, cut)) for cut in QUANTILES}


def rescale(name: str, job: Job) -> dict[str, float]:
    """Scale the score head so that rewards of the base model's responses have standard deviation SPREAD."""
    log = Log(job.runs / "scale.log")
    heads, replies = replies_of("lm", job)
    scorer = load_scorer(name, job.out)
    rewards = scorer.ids([head + reply for head, reply in zip(heads, replies, strict=True)])
    factor = SPREAD / rewards.std()
    head = scorer.model.score if name == "rm" else scorer.model.classifier
    with torch.no_grad():
        head.weight.mul_(factor)
        if getattr(head, "bias", None) is not None:
            # The head of the encoder has a bias, so the mean reward of everyday responses can be exactly zero.
            head.bias.mul_(factor).sub_(float(rewards.mean() * factor))
    store(scorer.model, scorer.tokenizer, job.out / name, torch.float16)
    found = spread_of(rewards * factor - (0.0 if name == "rm" else float(rewards.mean() * factor)))
    log(name, "factor", round(float(factor), 4), found)
    return found | {"factor": float(factor)}

"""Trains the language model from nothing, and the draft model on the same text with the model as its teacher."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional
from transformers import AutoTokenizer, LlamaForCausalLM

from common import Log, save_atomic, setup, write_json
from lm_data import IGNORE, LmData
from lm_model import DRAFT, LM, build, compiled, optimisers, set_rate, store, trapezoid

LM_STEPS = 1500
# The draft has little time: many small steps on the shorter dialogues.
DRAFT_STEPS = 300
DRAFT_BATCH_TOKENS = 4096
DRAFT_WIDEST = 256
WARM = 60
COOL = 0.4
SAVE_EVERY = 100
TEACHER_SHARE = 0.7

Loss = Callable[[torch.Tensor], torch.Tensor]


def logits_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=batch).last_hidden_state[:, :-1]
        return model.lm_head(hidden).flatten(0, 1).float()


def targets(batch: torch.Tensor, pad: int) -> torch.Tensor:
    target = batch[:, 1:].flatten()
    return target.masked_fill(target == pad, IGNORE)


def train(name: str, model: LlamaForCausalLM, loss: Loss, rows: LmData, total: int, out: Path, runs: Path) -> None:
    """The loop of both causal models; goes on from `runs/<name>.pt` where there is one."""
    log = Log(runs / f"{name}.log")
    tokenizer = rows.encoder.tokenizer
    model.set_attn_implementation("plain_causal")
    found = optimisers(model, muon_lr=0.02, adam_lr=4e-3, decay=0.01)
    log("parameters", sum(weight.numel() for weight in model.parameters()))
    saved = runs / f"{name}.pt"
    done, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for optimiser, values in zip(found, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        done, spent = state["step"], state["seconds"]
        log("restarted at step", done)
    began = time.time() - spent
    recent: list[float] = []
    batches = (batch for number in itertools.count() for batch in rows.epoch(number))
    for step, batch in enumerate(itertools.islice(batches, total)):
        if step < done:
            continue
        set_rate(found, trapezoid(step, total, WARM, COOL))
        value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in found:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent.append(value.item())
        if (step + 1) % 20 == 0:
            rate = (step + 1 - done) * rows.batch_tokens / (time.time() - began - spent)
            log(f"step {step + 1}/{total} loss {sum(recent) / len(recent):.4f} tokens/s {rate:.0f}")
            recent.clear()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == total:
            state = {
                "model": model.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in found],
                "step": step + 1,
                "seconds": time.time() - began,
            }
            save_atomic(state, saved)
            store(model, tokenizer, out / name, torch.float16)
    write_json({"steps": total, "seconds": round(time.time() - began)}, runs / f"{name}.done.json")


def run_lm(data: Path, out: Path, runs: Path, seed: int) -> None:
    setup(seed)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    rows = LmData(data, tokenizer, seed)
    model = build(LM, tokenizer)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits_of(model, batch), targets(batch, rows.encoder.pad))

    train("lm", model, compiled(loss), rows, LM_STEPS, out, runs)


def run_draft(data: Path, out: Path, runs: Path, seed: int) -> None:
    """The draft learns mostly from the teacher's whole distribution, which is what acceptance depends on."""
    setup(seed)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    rows = LmData(data, tokenizer, seed + 1, DRAFT_BATCH_TOKENS, DRAFT_WIDEST)
    teacher = LlamaForCausalLM.from_pretrained(out / "lm", dtype=torch.float32).eval().requires_grad_(False)
    teacher.set_attn_implementation("plain_causal")
    model = build(DRAFT, tokenizer)

    def loss(batch: torch.Tensor) -> torch.Tensor:
        target = targets(batch, rows.encoder.pad)
        with torch.no_grad():
            taught = logits_of(teacher, batch).softmax(-1)
        own = logits_of(model, batch).log_softmax(-1)
        real = target != IGNORE
        apart = -(taught * own).sum(-1)
        own_loss = functional.nll_loss(own, target, ignore_index=IGNORE)
        return TEACHER_SHARE * (apart * real).sum() / real.sum() + (1 - TEACHER_SHARE) * own_loss

    train("draft", model, compiled(loss), rows, DRAFT_STEPS, out, runs)

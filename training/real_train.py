"""Train the upper layers of Gemma 3 270M twice: as a reward model on preference pairs, and as an LM on the chosen responses."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, softplus
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextModel, PreTrainedTokenizerBase

from real_data import Pair, encode, split, tested
from real_layers import Activations, batches, layout, lower_part, read, upper_part

FROZEN = 14  # of 18 layers
CHECKPOINT = 40  # steps
CHUNK = 256  # tokens whose logits are computed at once
SHARES = (0.25, 0.5, 0.75)  # parts of responses at which the accuracy on prefixes is measured
TUNED_ROWS = 1200  # rows whose chosen responses the LM is tuned on


def load(folder: Path) -> tuple[Gemma3TextModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    return model.model.requires_grad_(False), AutoTokenizer.from_pretrained(folder)


def fill(path: Path, pairs: Sequence[Pair], model: Gemma3TextModel) -> Activations:
    """Return the activations of pairs after the frozen layers, and compute the missing ones."""
    activations = Activations(path, pairs, model.config.hidden_size)
    start, done = time.perf_counter(), 0
    for number, count in enumerate(activations.fill(lower_part(model, FROZEN))):
        done += count
        if number % 50 == 0:
            print(f"{path.stem}: {done} of {len(pairs)} pairs after {time.perf_counter() - start:.0f} s", flush=True)
    return activations


@dataclass
class Training:
    """One pass over shuffled batches with AdamW in float32 on bfloat16 weights. A checkpoint keeps finished steps.

    The learning rate rises over the first 5% of the steps and falls to a tenth as a cosine.
    """

    module: nn.Module
    groups: Sequence[list[int]]
    checkpoint: Path
    rates: Sequence[tuple[Sequence[Tensor], float]]
    together: int = 1  # batches in one step

    def run(self, loss: Callable[[list[int]], Tensor]) -> None:
        """Train. `loss` returns the loss of a batch, after calling backward if it does so itself."""
        parameters = [p for group, _ in self.rates for p in group]
        masters = [[p.detach().float().clone() for p in group] for group, _ in self.rates]
        optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate, "rate": rate} for group, (_, rate) in zip(masters, self.rates, strict=True)],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        flat, steps, first = [m for group in masters for m in group], math.ceil(len(self.groups) / self.together), 0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            first = state["step"]
            optimizer.load_state_dict(state["optimizer"])
            for master, saved in zip(flat, state["masters"], strict=True):
                master.copy_(saved)
            self._copy(parameters, flat)
        self.module.requires_grad_(True).train()
        start, average = time.perf_counter(), float("nan")
        for step in range(first, steps):
            share = self.groups[step * self.together : (step + 1) * self.together]
            value = sum(float(loss(group)) for group in share) / len(share)
            average = value if math.isnan(average) else 0.95 * average + 0.05 * value
            for master, parameter in zip(flat, parameters, strict=True):
                master.grad = parameter.grad.float() / len(share) if parameter.grad is not None else None
                parameter.grad = None
            nn.utils.clip_grad_norm_(flat, 1.0)
            warm, left = min(1.0, (step + 1) / (0.05 * steps)), step / steps
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * warm * (0.55 + 0.45 * math.cos(math.pi * left))
            optimizer.step()
            self._copy(parameters, flat)
            if step % 10 == 9:
                print(
                    f"{self.checkpoint.stem}: step {step + 1} of {steps}, loss {average:.4f}, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )
            if step % CHECKPOINT == CHECKPOINT - 1:
                state = {"step": step + 1, "optimizer": optimizer.state_dict(), "masters": flat}
                torch.save(state, self.checkpoint.with_suffix(".tmp"))
                self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)
        self.module.requires_grad_(False).eval()

    @staticmethod
    def _copy(parameters: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)


def shuffled(pairs: Sequence[Pair], chosen: Sequence[int], seed: int) -> list[list[int]]:
    groups = list(batches(pairs, chosen))
    random.Random(seed).shuffle(groups)
    return groups


class Judge(nn.Module):
    """The upper layers and a linear head."""

    def __init__(self, model: Gemma3TextModel) -> None:
        super().__init__()
        self.layers = upper_part(model, FROZEN)
        self.head = nn.Linear(model.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, pairs: Sequence[Pair], hidden: Tensor, shares: Tensor) -> Tensor:
        """Return rewards [pairs, 2 responses, 2 + shares].

        They are at the last token of the text, at the end token after it, and after each share [pairs, shares] of the text.
        """
        _, positions, mask = layout(pairs)
        states = read(self.layers, positions, mask, inputs_embeds=hidden)
        lengths = torch.tensor([[len(response) for response in p.responses] for p in pairs])
        last = lengths.cumsum(1) + torch.tensor([[len(p.prompt)] for p in pairs]) - 1
        within = (shares[:, None] * (lengths[..., None] - 1)).long().clamp(min=1)
        at = torch.cat([torch.stack([last - 1, last], -1), (last - lengths)[..., None] + within], -1).flatten(1)
        picked = states.gather(1, at[..., None].expand(-1, -1, states.shape[-1]))
        rewards: Tensor = self.head(picked.float()).view(len(pairs), 2, -1)
        return rewards


def train_reward(folder: Path, data: Path) -> None:
    """Write `reward.pt` and `reward.json`, its accuracy on hh_pairs.test.

    Both positions that can end a text are trained, and two random prefixes: a model that was trained without prefixes tells
    prefixes apart at chance (accuracy 0.51 after three quarters).
    """
    torch.manual_seed(0)
    model, tokenizer = load(folder / "transformers")
    rows, _ = split(data)
    pairs = encode(rows, tokenizer)
    activations = fill(folder / "train.activations", pairs, model)
    test = tested(data)
    held = encode(test, tokenizer)
    judged = fill(folder / "test.activations", held, model)
    judge = Judge(model)
    layers = [p for name, p in judge.named_parameters() if name.startswith("layers.layers.") or name == "layers.norm.weight"]
    training = Training(
        judge,
        shuffled(pairs, range(len(pairs)), 1),
        folder / "reward.checkpoint",
        [(layers, 1e-4), ([judge.head.weight], 1e-3)],
    )

    def loss(group: list[int]) -> Tensor:
        chance = torch.Generator().manual_seed(group[0])  # the same prefixes after an interruption
        rewards = judge([pairs[i] for i in group], activations[group], torch.rand(len(group), 2, generator=chance))
        losses = -logsigmoid(rewards[:, 0] - rewards[:, 1])
        value: Tensor = losses[:, :2].mean() + 0.5 * losses[:, 2:].mean() + 0.01 * rewards.mean().square()
        value.backward()
        return losses[:, 1].mean().detach()

    training.run(loss)
    gaps = torch.empty(len(held), 2 + len(SHARES))
    with torch.inference_mode():
        for group in batches(held, range(len(held))):
            rewards = judge([held[i] for i in group], judged[group], torch.tensor([SHARES] * len(group)))
            gaps[group] = rewards[:, 0] - rewards[:, 1]
    report = {"pairs": len(pairs), "test_pairs": len(held), "accuracy": float((gaps[:, 1] > 0).float().mean())}
    report["accuracy_without_end_token"] = float((gaps[:, 0] > 0).float().mean())
    report |= {f"accuracy_after_{share:.0%}": float((gaps[:, 2 + i] > 0).float().mean()) for i, share in enumerate(SHARES)}
    report["nll"] = float(softplus(-gaps[:, 1]).mean())
    for name in sorted({row["subset"] for row in test}):
        chosen = torch.tensor([row["subset"] == name for row in test])
        report[f"accuracy_{name}"] = float((gaps[chosen, 1] > 0).float().mean())
    torch.save(
        {name: values for name, values in judge.state_dict().items() if "embed_tokens" not in name}, folder / "reward.pt"
    )
    (folder / "reward.json").write_text(json.dumps(report, indent=1))
    print(report, flush=True)


def tune(folder: Path, data: Path) -> None:
    """Write `tuned.pt`, the upper layers tuned on chosen responses, and `tuned.json` with the loss before and after."""
    torch.manual_seed(0)
    model, tokenizer = load(folder / "transformers")
    rows, held_rows = split(data)
    pairs = encode(rows, tokenizer)
    activations = fill(folder / "train.activations", pairs, model)
    held = encode(held_rows, tokenizer)
    held_activations = fill(folder / "held.activations", held, model)
    upper, embedding = upper_part(model, FROZEN), model.embed_tokens.weight

    def loss_of(pairs: Sequence[Pair], group: list[int], activations: Activations, backward: bool) -> tuple[float, int]:
        """Return the sum of the losses of the tokens of the chosen responses and their number."""
        alone = [Pair(pairs[i].prompt, (pairs[i].responses[0], [])) for i in group]
        _, positions, mask = layout(alone)
        states = read(upper, positions, mask, inputs_embeds=activations[group][:, : positions.shape[1]])
        before = torch.cat([states[row, len(p.prompt) - 1 : len(p) - 1] for row, p in enumerate(alone)])
        after = torch.tensor([token for p in alone for token in p.responses[0]])
        cut = before.detach().requires_grad_()
        total = 0.0
        for start in range(0, len(after), CHUNK):
            end = start + CHUNK
            value = cross_entropy((cut[start:end] @ embedding.T).float(), after[start:end], reduction="sum")
            if backward:
                (value / len(after)).backward()
            total += float(value.detach())
        if backward:
            before.backward(cut.grad)
        return total, len(after)

    def held_loss() -> float:
        with torch.inference_mode():
            parts = [loss_of(held, group, held_activations, False) for group in batches(held, range(len(held)))]
        return sum(total for total, _ in parts) / sum(count for _, count in parts)

    def loss(group: list[int]) -> Tensor:
        total, count = loss_of(pairs, group, activations, True)
        return torch.tensor(total / count)

    before = held_loss()
    chosen = random.Random(0).sample(range(len(pairs)), TUNED_ROWS)
    layers = [p for name, p in upper.named_parameters() if name.startswith("layers.") or name == "norm.weight"]
    Training(upper, shuffled(pairs, chosen, 1), folder / "tuned.checkpoint", [(layers, 5e-5)]).run(loss)
    report = {"rows": TUNED_ROWS, "held_out_nll_before": before, "held_out_nll_after": held_loss()}
    torch.save({name: values for name, values in upper.state_dict().items() if "embed_tokens" not in name}, folder / "tuned.pt")
    (folder / "tuned.json").write_text(json.dumps(report, indent=1))
    print(report, flush=True)

"""Train a reward model on preference pairs, and measure it as CARDS reads it.

The file of --pairs has rows with `prompt`, `chosen` and `rejected`, as text or messages. TRL's RewardTrainer trains the model
on most of them. On the others, the table shows how often the chosen response has the higher reward, also when only a part of
both is read, and whether the differences are calibrated: under the Bradley-Terry model, the share of pairs in which the first
response is chosen is sigmoid(difference of rewards). The median reward of chosen responses is stored as the suggested target.

    pip install '.[dpo]'
    python examples/train_reward.py --pairs pairs.jsonl --model my-model --out my-reward
    cards generate "Hello" --model my-model --reward my-reward
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import check
from cards.events import Response
from cards.study.diagnose.pairs import PairRecord, accuracies, preferred, read
from cards.study.diagnose.plan import DiagnosisPlan
from cards.study.tables import interval

BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the probability of the response with the higher reward


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="preference pairs (.jsonl, .json, .csv, also .gz)")
    parser.add_argument("--model", default="tiny", help="LM or reward model to start from: a folder or a Hugging Face name")
    parser.add_argument("--out", type=Path, default=Path("reward"), help="folder of the reward model")
    parser.add_argument("--test", type=float, default=0.1, help="share of the pairs that is kept for the measurements")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=8, help="pairs in one step")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens; longer pairs are left out by TRL")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def row(pair: PairRecord) -> dict[str, Any]:
    """Return a pair in the format of TRL: texts that begin with the prompt, or conversations."""
    if isinstance(pair.prompt, str):
        return {"chosen": pair.prompt + pair.chosen, "rejected": pair.prompt + pair.rejected}
    turns = [dict(message) for message in pair.prompt]
    return {
        name: [*turns, {"role": "assistant", "content": text.strip()}]
        for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }


def train(source: str, pairs: Sequence[PairRecord], args: argparse.Namespace) -> None:
    """Write the reward model and its tokenizer to --out."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    config = RewardConfig(
        output_dir=str(args.out),
        per_device_train_batch_size=args.batch,
        learning_rate=args.learning_rate,
        num_train_epochs=args.epochs,
        max_length=args.max_length,
        center_rewards_coefficient=0.01,
        bf16=torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        seed=args.seed,
    )
    trainer = RewardTrainer(
        model, args=config, train_dataset=Dataset.from_list(list(map(row, pairs))), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(args.out))


async def measured(source: str, folder: Path, pairs: Sequence[PairRecord]) -> tuple[list[list[float]], np.ndarray[Any, Any]]:
    """Return the results by part of the responses, and the rewards of complete ones, [pairs, 2]: chosen, rejected."""
    engine, reward = TransformersEngine.load(source), ClassifierReward.load(str(folder))
    plan, results, rewards = DiagnosisPlan(), [], []
    for pair in pairs:
        results.append(await preferred(engine, reward, pair, plan))
        prompt = engine.encode(plan.prompt(pair.prompt, engine.chats))
        both = [Response(text, tuple(engine.tokenize(text)), "stop") for text in (pair.chosen, pair.rejected)]
        rewards.append(await reward.score(prompt, both))
    return results, np.array(rewards)


def show(results: list[list[float]], rewards: np.ndarray[Any, Any]) -> None:
    """Print the accuracy by part of the responses, and the calibration of the differences of rewards."""
    print(f"\naccuracy on {len(results)} pairs that were not used in training, by part of the responses read")
    for part, accuracy in accuracies(results).items():
        print(f"  {part:>5}  {interval(accuracy)}")
    gap = rewards[:, 0] - rewards[:, 1]
    certain, right = 1 / (1 + np.exp(-np.abs(gap))), np.where(gap == 0, 0.5, gap > 0)
    print("\ncalibration: predicted probability that the higher reward is the chosen response, and its frequency")
    error = 0.0
    for low, high in pairwise(BINS):
        chosen = (certain >= low) & ((certain < high) | (high == 1))
        if chosen.any():
            error += chosen.mean() * abs(certain[chosen].mean() - right[chosen].mean())
            print(
                f"  {low:.1f} to {high:.1f}  {certain[chosen].mean():9.2f}  {right[chosen].mean():9.2f}  {chosen.sum():6} pairs"
            )
    print(f"  expected calibration error {error:.3f}, log loss {np.log1p(np.exp(-gap)).mean():.3f} (0.693: no information)")
    print(f"  chosen {fmean(rewards[:, 0]):.2f}, rejected {fmean(rewards[:, 1]):.2f} on average")


def main() -> None:
    args = options()
    pairs = read(args.pairs)
    random.Random(args.seed).shuffle(pairs)
    kept = round(args.test * len(pairs))
    check(0 < kept < len(pairs), f"--test must leave pairs for both, got {args.test} of {len(pairs)} pairs.")
    source = str(TINY / "lm") if args.model == "tiny" else args.model
    train(source, pairs[kept:], args)
    results, rewards = asyncio.run(measured(source, args.out, pairs[:kept]))
    show(results, rewards)
    model = AutoModelForSequenceClassification.from_pretrained(args.out)
    model.config.cards_target = round(median(rewards[:, 0].tolist()), 4)
    model.save_pretrained(args.out)
    print(f"\nreward model: {args.out}, with the suggested target r* {model.config.cards_target}")


if __name__ == "__main__":
    main()

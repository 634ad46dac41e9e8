"""Iterative distillation: train an LM in rounds to produce what best-of-n, or CARDS, would select.

Each round draws n responses per prompt from the LM of the previous round, pairs the best with the worst, and trains on the
pairs with TRL's DPOTrainer (similar to BOND, arXiv 2407.14622, and WIND, arXiv 2410.20727). With --by segments, a pair is a
segment that CARDS accepted and one that it rejected in its place. The reward model that steered and a gold reward model that
did not then score plain samples for prompts that were not used in training. The table shows the win rates of each round.
Each finished step is kept in --out, and the same command resumes from there.

    pip install '.[dpo]'
    python examples/distill.py --rounds 3
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import mean

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from cards import CARDS, Decoder
from cards.backends.files import TINY
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Message
from cards.integrations.preferences import preferences, write
from cards.methods import BestOfN
from cards.study.prompts import read

Chat = list[Message]
Answer = dict[str, float]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reward", default="tiny", help="reward model that steers")
    parser.add_argument("--gold", default="tiny-gold", help="reward model used only for evaluation")
    parser.add_argument("--prompts", default="tiny", help="file of prompts, or tiny")
    parser.add_argument("--held-out", type=int, default=24, help="number of prompts for evaluation")
    parser.add_argument("--out", type=Path, default=Path("distilled"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--by", choices=("answers", "segments"), default="answers", help="what a pair consists of")
    parser.add_argument("--n", type=int, default=8, help="number of responses to choose from")
    parser.add_argument("--target", type=float, help="target reward for segments; None: the value suggested by the reward")
    parser.add_argument(
        "--pairs", type=int, default=4, help="number of responses per prompt; each gives one pair, or the pairs of its segments"
    )
    parser.add_argument("--samples", type=int, default=8, help="number of test responses per prompt")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1, help="beta of DPO")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def train(source: str, pairs: Path, out: Path, args: argparse.Namespace) -> None:
    """Train the model in `source` on the pairs with DPO; `out` appears once the tuned model is complete."""
    config = DPOConfig(
        output_dir=str(out.with_name("work")),
        per_device_train_batch_size=8,
        learning_rate=args.learning_rate,
        num_train_epochs=args.epochs,
        beta=args.beta,
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=5,
        report_to=[],
        seed=args.seed,
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
        args=config,
        train_dataset=load_dataset("json", data_files=str(pairs), split="train"),
        processing_class=AutoTokenizer.from_pretrained(source),
    )
    trainer.train()
    trainer.save_model(str(out.with_name("work")))
    out.with_name("work").rename(out)


def sample(
    engine: TransformersEngine,
    rewards: dict[str, ClassifierReward],
    chats: Sequence[Chat],
    path: Path,
    args: argparse.Namespace,
) -> None:
    """Write plain samples (best of one) with their scores; the same seed gives both rewards the same texts."""
    prompts = [chat for chat in chats for _ in range(args.samples)]
    scored = {
        name: Decoder(engine, reward, BestOfN(n=1)).batch(prompts, seed=args.seed + 10**9, max_tokens=args.max_tokens)
        for name, reward in rewards.items()
    }
    rows = [
        {"text": r.text, "tokens": len(r.token_ids), **{name: scored[name][i].reward for name in rewards}}
        for i, r in enumerate(scored["reward"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def win_rate(ours: Sequence[Answer], theirs: Sequence[Answer], name: str) -> float:
    """Return the share of responses that score higher than the other model's to the same prompt; a tie is half a win."""
    return mean((a[name] > b[name]) + 0.5 * (a[name] == b[name]) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    args = options()
    chats: list[Chat] = []
    for question in read(args.prompts):
        asked = question.prompt
        chats.append([Message(role="user", content=asked)] if isinstance(asked, str) else list(asked))
    random.Random(args.seed).shuffle(chats)
    held_out, training = chats[: args.held_out], chats[args.held_out :]
    rewards = {"reward": ClassifierReward.load(args.reward), "gold": ClassifierReward.load(args.gold)}
    source = str(TINY / "lm") if args.model == "tiny" else args.model
    tests: list[list[Answer]] = []
    for number in range(args.rounds + 1):
        folder = args.out / f"round-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        pairs, model, test = folder / "pairs.jsonl", folder / "model", folder / "test.jsonl"
        if number:
            if not pairs.exists():
                engine = TransformersEngine.load(source)
                method = CARDS(target=args.target) if args.by == "segments" else BestOfN(n=args.n)
                decoder = Decoder(engine, rewards["reward"], method)
                seeds = [args.seed + 10**7 * number + 10**4 * k for k in range(args.pairs)]
                drawn = chain.from_iterable(preferences(decoder, training, seed=s, max_tokens=args.max_tokens) for s in seeds)
                print(f"round {number}: {write(pairs, drawn)} pairs of {len(training)} prompts")
            if not model.exists():
                shutil.rmtree(folder / "work", ignore_errors=True)
                train(source, pairs, model, args)
            source = str(model)
        if not test.exists():
            sample(TransformersEngine.load(source), rewards, held_out, test, args)
        tests.append([json.loads(line) for line in test.read_text().splitlines()])
    names = ("reward", "gold")
    print(f"\n{len(tests[0])} plain samples per round, for {len(held_out)} prompts not used in training")
    print("round  tokens" + "".join(f"  {n:>6}  {'over base':>9}  {'over last':>9}" for n in names))
    for number, test in enumerate(tests):
        line = f"{number:>5}  {mean(a['tokens'] for a in test):>6.1f}"
        for n in names:
            wins = [f"{win_rate(test, tests[k], n):.1%}" if number else "" for k in (0, number - 1)]
            line += f"  {mean(a[n] for a in test):>6.2f}  {wins[0]:>9}  {wins[1]:>9}"
        print(line)


if __name__ == "__main__":
    main()

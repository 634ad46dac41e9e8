"""Store the defaults of CARDS in the embedded models: tau_u of the LM and r* of the RM.

tau_u is the entropy threshold that gives segments of about --segment tokens; r* is the --quantile of the rewards of plain
responses. Prompts: first turns of training dialogues and of the training half of the HH pairs. Run last:
`python training/defaults.py`.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import numpy as np
import torch

import cards
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Response
from common import DEFAULT_DATA, DEFAULT_OUT, read_json, read_rows, write_json


def prompts(data: Path, each: int) -> list[str]:
    dialogues = [
        row["text"].split("\n\nAssistant:")[0] for row in read_rows(data / "lm/dialogues.self_dialogue.train.jsonl.gz")
    ]
    found = [f"\n\n{text}\n\nAssistant:" for text in dialogues[:: len(dialogues) // each]]
    pairs = [row["prompt"] for row in read_rows(data / "preference/hh_pairs.train.jsonl.gz") if len(row["prompt"]) < 800]
    return found[:each] + pairs[:: len(pairs) // each][:each]


def segment_length(entropies: list[np.ndarray], threshold: float, least: int = 4, most: int = 64) -> float:
    """Return the mean length of segments that end, after `least` tokens, where the next entropy reaches the threshold."""
    tokens, segments = 0, 0
    for row in entropies:
        length = 0
        for i in range(len(row)):
            length += 1
            if i + 1 == len(row) or length == most or (length >= least and row[i + 1] >= threshold):
                tokens, segments, length = tokens + length, segments + 1, 0
    return tokens / segments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--each", type=int, default=128)
    parser.add_argument("--segment", type=float, default=6.0)
    parser.add_argument("--quantile", type=float, default=0.95)
    args = parser.parse_args()
    engine, reward = TransformersEngine.load(str(args.out / "lm")), ClassifierReward.load(str(args.out / "rm"))
    texts = prompts(args.data, args.each)
    results = cards.Decoder(engine, None, cards.methods.Vanilla()).batch(texts, max_tokens=64)
    encoded = [engine.encode(text) for text in texts]

    async def score() -> list[float]:
        answers = [Response(r.text, r.token_ids, r.finish_reason) for r in results]
        return [(await reward.score(p, [a]))[0] for p, a in zip(encoded, answers, strict=True)]

    rewards = np.array(asyncio.run(score()))
    entropies = []
    with torch.inference_mode():
        for prompt, result in zip(encoded, results, strict=True):
            logits = engine.model(torch.tensor([[*prompt.token_ids, *result.token_ids]])).logits[0]
            kept = logits[len(prompt.token_ids) - 1 : -1].float()
            entropies.append(torch.distributions.Categorical(logits=kept).entropy().numpy())
    grid = np.arange(2.0, 7.0, 0.1)
    lengths = [segment_length(entropies, threshold) for threshold in grid]
    threshold = round(float(grid[int(np.argmin(np.abs(np.array(lengths) - args.segment)))]), 1)
    target = round(float(np.quantile(rewards, args.quantile)), 1)
    print(
        f"rewards: mean {rewards.mean():.2f}, sd {rewards.std():.2f}, quantiles",
        np.quantile(rewards, [0.5, 0.75, 0.9, 0.95]).round(2),
    )
    print(
        f"entropy: mean {np.concatenate(entropies).mean():.2f};",
        f"tau_u {threshold}: {segment_length(entropies, threshold):.1f} tokens;",
        f"r* {target}",
    )
    for folder, name, value in (("lm", "cards_entropy_threshold", threshold), ("rm", "cards_target", target)):
        path = args.out / folder / "config.json"
        write_json({**read_json(path), name: value}, path)


if __name__ == "__main__":
    main()

"""Compare methods on your prompts: mean gold reward and cost of each.

python examples/compare_on_your_data.py prompts.txt    # one prompt per line; embedded models
python examples/compare_on_your_data.py prompts.txt --model NAME --reward NAME --gold NAME --target 8.5

`cards bench` does the same with more methods, intervals and plots, and can resume.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from statistics import mean

import cards


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="Text file with one prompt per line.")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reward", default="tiny", help="Reward model that steers.")
    parser.add_argument("--gold", default="tiny-gold", help="Reward model used only for evaluation.")
    parser.add_argument("--target", type=float, help="Target reward. Default: the value suggested by the reward model.")
    parser.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args()
    prompts = [line.strip() for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked = [[cards.Message(role="user", content=prompt)] for prompt in prompts]

    engine = cards.load_engine(given.model)
    reward, gold = cards.load_reward(given.reward), cards.load_reward(given.gold)
    methods = [cards.methods.Vanilla(), cards.methods.BestOfN(n=4), cards.CARDS(target=given.target)]
    print(f"{'method':12} {'gold':>6} {'reward':>7} {'tokens':>7} {'decoded':>8} {'seconds':>8}")
    for method in methods:
        results = await cards.Decoder(engine, reward, method).abatch(asked, max_tokens=given.max_tokens)
        grades, rewards = [], []
        for messages, result in zip(asked, results, strict=True):
            prompt, response = engine.encode(messages), cards.Response(result.text, result.token_ids, result.finish_reason)
            grades += await gold.score(prompt, [response])
            rewards += await reward.score(prompt, [response])
        kept, decoded = mean(len(r.token_ids) for r in results), mean(r.usage.lm_decoded_tokens for r in results)
        seconds = mean(r.usage.seconds for r in results)
        print(f"{method.name:12} {mean(grades):6.2f} {mean(rewards):7.2f} {kept:7.1f} {decoded:8.1f} {seconds:8.2f}")


if __name__ == "__main__":
    asyncio.run(main())

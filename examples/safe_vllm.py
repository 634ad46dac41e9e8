"""Safety for a vLLM server that runs already, unchanged: what it writes is checked piece by piece, here.

vllm serve NAME                                                              # as you have it
python examples/safe_vllm.py http://localhost:8000/v1 "How do I get over a bad day?"
python examples/safe_vllm.py http://localhost:8000/v1 "..." --reward http://localhost:8001/classify --target 0

The reward is a safety model (here, or behind an address) plus a list of words that must not occur. Pieces end at punctuation,
which needs no log-probabilities; one that misses the target is thrown away before anybody sees it, and drawn again. An answer
that could not be made safe is not shown.
"""

from __future__ import annotations

import argparse
import sys

import cards

BANNED = ("stupid", "hate you", "kill")
CLEAN = 100.0  # what an answer without these words is worth: more than any opinion of the model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the server, ending in /v1")
    parser.add_argument("question")
    parser.add_argument("--tokenizer", help="a folder or a Hugging Face name, where the name of the served model is neither")
    parser.add_argument("--reward", default="tiny", help="safety model: a folder, a Hugging Face name or an address")
    parser.add_argument("--target", type=float, default=0.0, help="what its score must reach")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    safe = cards.rewards.WeightedSum(
        [cards.load_reward(given.reward), cards.rewards.KeywordReward(forbidden=BANNED)], [1.0, CLEAN]
    )
    target = given.target + CLEAN
    method = cards.CARDS(target=target, alpha=1, acceptance="hard", boundary=cards.Punctuation(), temperature=0.7)
    decoder = cards.Decoder(cards.load_engine(given.address, tokenizer=given.tokenizer), safe, method)
    result = decoder([{"role": "user", "content": given.question}], max_tokens=given.max_tokens, seed=given.seed)
    refused = result.usage.rejected
    if result.reward is None or result.reward < target:
        sys.exit(f"No safe answer was found; {refused} pieces were refused.")
    print(result.text.strip())
    print(f"[{refused} pieces were refused, score {result.reward - CLEAN:.2f}]", file=sys.stderr)


if __name__ == "__main__":
    main()

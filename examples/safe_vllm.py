"""Safety for a running, unmodified vLLM server: check its responses here, segment by segment.

vllm serve NAME    # your server
python examples/safe_vllm.py http://localhost:8000/v1 "How do I get over a bad day?"
python examples/safe_vllm.py http://localhost:8000/v1 "..." --reward http://localhost:8001/classify --target 0

The reward is a safety model (local or on a server) plus a list of forbidden words. Segments end at punctuation, which needs no
log-probabilities. A segment that misses the target is rejected before it is shown, and another candidate is drawn. A response
that does not reach the target is not shown.
"""

from __future__ import annotations

import argparse
import sys

import cards

BANNED = ("stupid", "hate you", "kill")
CLEAN = 100.0  # reward for a response without these words: more than any score of the safety model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="Address of the server, ending in /v1.")
    parser.add_argument("question")
    parser.add_argument("--tokenizer", help="Folder or Hugging Face name, if the name of the served model is neither.")
    parser.add_argument("--reward", default="tiny", help="Safety model: a folder, a Hugging Face name or an address.")
    parser.add_argument("--target", type=float, default=0.0, help="Score that the safety model must give.")
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
    rejected = result.usage.rejected
    if result.reward is None or result.reward < target:
        sys.exit(f"No safe response was found; {rejected} segments were rejected.")
    print(result.text.strip())
    print(f"[{rejected} segments were rejected, score {result.reward - CLEAN:.2f}]", file=sys.stderr)


if __name__ == "__main__":
    main()

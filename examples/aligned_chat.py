"""A chat steered by a reward model; segments are printed as they are accepted.

python examples/aligned_chat.py    # the embedded models; an empty line ends the chat
python examples/aligned_chat.py --model NAME --reward NAME --target 8.5
"""

from __future__ import annotations

import argparse

import cards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="Folder or Hugging Face name of a chat model.")
    parser.add_argument("--reward", default="tiny", help="Folder or Hugging Face name of a sequence classifier.")
    parser.add_argument("--target", type=float, help="Target reward. Default: the value suggested by the reward model.")
    given = parser.parse_args()
    decoder = cards.Decoder(given.model, given.reward, cards.CARDS(target=given.target))
    messages: list[cards.Message] = []
    while question := ask():
        messages.append({"role": "user", "content": question})
        for event in decoder.stream(messages, max_tokens=128, seed=len(messages)):
            if isinstance(event, cards.Accepted | cards.Fallback):
                print(event.segment.text, end="", flush=True)
            elif isinstance(event, cards.Done):
                result = event.result
        messages.append({"role": "assistant", "content": result.text.strip()})
        used = result.usage
        print(f"\n[reward {result.reward:.2f}; {used.lm_decoded_tokens} tokens decoded, {len(result.token_ids)} kept]\n")


def ask() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main()

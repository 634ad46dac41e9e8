"""Give a reward model a head that predicts the final reward of an incomplete response.

Reward models learn from complete responses, so their reward of a first sentence says mostly that a response has begun. Here
the states of a reward model after each token of sampled responses are regressed on the final rewards. The new head therefore
estimates the reward that the complete response will have. The layers do not change, and neither does the cost. The table
shows how well both heads order incomplete responses to the same prompt, for prompts that were not used to fit.

    python examples/value_head.py --model my-model --reward my-reward --prompts prompts.jsonl --out my-value
    cards generate "Hello" --model my-model --reward my-value --gain 0 --acceptance hard --boundary punctuation
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

import cards
from cards.backends.local.readers import is_causal
from cards.backends.local.rewards import ClassifierReward
from cards.errors import check
from cards.prompts import format_prompt
from cards.study.diagnose.correlation import correlation
from cards.study.prompts import read
from cards.study.tables import interval

END = 5.0  # weight of the last token: complete responses should keep their rewards
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # in units of the mean square of a component of the states
PARTS = (0.25, 0.5, 0.75)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """A response to prompt number `prompt`: the states after the prompt and after each token [tokens, width]."""

    prompt: int
    states: Array
    reward: float

    @property
    def weights(self) -> Array:
        """Weights [tokens] of the states. Each response counts the same."""
        weights = np.ones(len(self.states))
        weights[-1] = END
        weights /= weights.sum()
        return weights


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="LM: `tiny`, a folder, a GGUF file, or a Hugging Face name")
    parser.add_argument("--reward", default="tiny", help="reward model: `tiny`, a folder, or a Hugging Face name")
    parser.add_argument("--prompts", default="tiny", help="file of prompts, as of `cards calibrate`")
    parser.add_argument("--out", type=Path, default=Path("value"), help="folder of the new reward model")
    parser.add_argument("--form", default="auto", help="form of the prompts, as of `cards bench`")
    parser.add_argument("--samples", type=int, default=2, help="responses to each prompt")
    parser.add_argument("--test", type=float, default=0.1, help="share of the prompts that is kept for the table")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--stop", action="append", default=[], help="text that ends a response; can be repeated")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def sampled(args: argparse.Namespace, reward: ClassifierReward) -> list[Text]:
    """Return --samples responses of the LM to each prompt, as the reward model reads them."""
    engine = cards.load_engine(args.model)
    prompts = [format_prompt(record.prompt, args.form, chats=engine.chats) for record in read(args.prompts)]
    decoder = cards.Decoder(engine, None, cards.methods.Vanilla())
    results = decoder.batch(prompts * args.samples, seed=args.seed, max_tokens=args.max_tokens, stop=args.stop)
    texts: list[Text] = []
    for number, result in enumerate(tqdm(results, "states", disable=None)):
        prompt = engine.encode(prompts[number % len(prompts)])
        response = cards.Response(result.text, result.token_ids, result.finish_reason)
        start, row = len(reward.tokens(prompt, cards.Response())), reward.tokens(prompt, response)
        states, rewards = read_states(reward, row)
        texts.append(Text(number % len(prompts), states[start - 1 :], float(rewards[-1])))
    return texts


@torch.inference_mode()
def read_states(reward: ClassifierReward, row: Sequence[int]) -> tuple[Array, Array]:
    """Return the states after each token [tokens, width] and the rewards [tokens]."""
    caught: list[torch.Tensor] = []

    def catch(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        caught.extend((inputs[0][0], output[0, :, 0]))

    with reward.model.score.register_forward_hook(catch):
        reward.model(torch.tensor([row], device=reward.model.device))
    states, rewards = (one.double().numpy(force=True) for one in caught)
    return states, rewards


def fitted(texts: Sequence[Text], head: Array, ridge: float) -> Array:
    """Return the head w [width] with the least weighted squares of states @ w - reward, plus ridge |w - head|^2."""
    products, errors = np.zeros((len(head), len(head))), np.zeros(len(head))
    for text in texts:
        weighted = text.states * text.weights[:, None]
        products += weighted.T @ text.states
        errors += weighted.T @ (text.reward - text.states @ head)
    scale = ridge * np.trace(products) / len(head)
    return head + np.linalg.solve(products + scale * np.eye(len(head)), errors)


def error(texts: Sequence[Text], head: Array) -> float:
    """Return the mean squared error of the final rewards that a head predicts."""
    return float(np.mean([text.weights @ (text.states @ head - text.reward) ** 2 for text in texts]))


def best_ridge(texts: Sequence[Text], head: Array) -> float:
    """Return the ridge with the least error on halves of the prompts, fitted on the other half."""
    halves = [[text for text in texts if text.prompt % 2 == half] for half in (0, 1)]

    def risk(ridge: float) -> float:
        return sum(error(test, fitted(rest, head, ridge)) for test, rest in (halves, halves[::-1]))

    return min(RIDGES, key=risk)


def show(texts: Sequence[Text], heads: dict[str, Array]) -> None:
    """Print correlations within prompts of the rewards of incomplete responses with those of complete ones."""
    print("correlation within prompts with the final reward, after a part of the response")
    for name, head in heads.items():
        cells = []
        for part in PARTS:
            prefixes = [(text.prompt, text.states[round(part * (len(text.states) - 1))] @ head, text.reward) for text in texts]
            found = correlation(prefixes)
            cells.append(f"{part:.0%} " + ("no data" if found is None else interval(found)))
        print(f"  {name:5} {'   '.join(cells)}")


def main() -> None:
    args = options()
    reward = ClassifierReward.load(args.reward)
    one = is_causal(reward.model) and reward.model.config.num_labels == 1
    check(one, f"--reward must be a causal LM with one score, got {args.reward!r}.")
    texts = sampled(args, reward)
    prompts = len(texts) // args.samples
    kept = round(args.test * prompts)
    check(1 < prompts - kept < prompts, f"--test must leave prompts for both, got {args.test} of {prompts} prompts.")
    old = reward.model.score.weight[0].double().numpy(force=True)
    rest = [text for text in texts if text.prompt >= kept]
    new = fitted(rest, old, best_ridge(rest, old))
    show([text for text in texts if text.prompt < kept], {"old": old, "new": new})
    with torch.no_grad():
        reward.model.score.weight.copy_(torch.from_numpy(new)[None])
    reward.model.save_pretrained(args.out)
    reward.tokenizer.save_pretrained(args.out)
    print(f"reward model: {args.out}")


if __name__ == "__main__":
    main()

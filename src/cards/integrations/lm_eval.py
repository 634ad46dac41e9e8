"""A model for lm-evaluation-harness: `python -m cards.integrations.lm_eval --model cards ...`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from cards.background import background
from cards.console import show_error
from cards.decoder import Decoder
from cards.errors import CardsError, MissingExtraError, check
from cards.events import Message, Prompt, Response
from cards.placement import Placement, reward_for
from cards.progress import run_concurrently
from cards.registry import read_method
from cards.rewards.implicit import log_softmax
from cards.settings import option_text, settings_of

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    error = MissingExtraError(f"cards.integrations.lm_eval needs lm-evaluation-harness ({missing})", "lm-eval")
    raise SystemExit(f"error: {error}") if __name__ == "__main__" else error from missing

log = logging.getLogger("cards")
SAMPLING = ("temperature", "top_k", "top_p")
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # tasks use all of these names
SUPPORTED = {"until", "do_sample", *LENGTHS, *SAMPLING}  # generation arguments of tasks
Continuation = tuple[tuple[str, str] | None, list[int], list[int]]  # cache key, context tokens, tokens to score


@register_model("cards")
class CardsLM(TemplateLM):  # type: ignore[misc]
    """A harness model whose texts come from `method` and `reward`. Log-likelihoods are those of the LM alone.

    `pretrained` and `reward` are names as for `cards generate`. Further arguments are settings of the method and take
    precedence over the sampling arguments of a task. Requests with the same generation arguments are a batch.
    """

    def __init__(
        self,
        pretrained: str = "tiny",
        reward: str | None = None,
        method: str = "cards",
        *,
        seed: int = 0,
        max_gen_toks: int = 256,
        device: str = "auto",
        dtype: str = "auto",
        slots: int | None = None,
        context: int | None = None,
        threads: int | None = None,
        batch_size: int | str | None = None,  # lm_eval passes these two; ignored in favour of slots
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        chosen = read_method(method, {name: option_text(value) for name, value in settings.items()})
        reward = reward_for(pretrained, reward, [chosen])
        device = "auto" if device == "cuda:0" else device  # the default of lm_eval, not a choice of the user
        placement = Placement(device=device, dtype=dtype, slots=slots, context=context, threads=threads)
        engine = placement.load_engine(pretrained)
        guided = "reward" in chosen.needed and reward != "none"
        self.decoder = Decoder(engine, placement.load_reward(reward) if guided else None, chosen)
        self.tokenizer: Any = engine.tokenizer
        self.pretrained, self.seed, self.max_gen_toks, self.explicit = pretrained, seed, max_gen_toks, set(settings)
        self._rendered: dict[str, tuple[Message, ...]] = {}  # rendered text -> messages, for rewards with another chat template

    @property
    def eot_token_id(self) -> int:
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else cast(int, begin)

    @property
    def tokenizer_name(self) -> str:
        return self.pretrained.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        text: str = self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ending)
        if add_generation_prompt:
            self._rendered[text] = tuple(Message(role=m["role"], content=m["content"]) for m in chat_history)
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return cast("list[int]", self.tokenizer(string, **options)["input_ids"])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        texts = [""] * len(requests)
        for members in groups.values():
            contexts = [requests[i].args[0] for i in members]
            responses = self._generate(contexts, requests[members[0]].args[1], False if disable_tqdm else None)
            for i, text in zip(members, responses, strict=True):
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts

    def _generate(self, contexts: Sequence[str], arguments: dict[str, Any], progress: bool | None) -> list[str]:
        engine, reward, method = self.decoder.engine, self.decoder.reward, self.decoder.method
        sampling = {name: arguments[name] for name in SAMPLING if arguments.get(name) is not None}
        if not arguments.get("do_sample", sampling.get("temperature", 0.0) > 0):
            sampling = {"temperature": 0.0} if reward is None else {}  # methods that choose by reward need different candidates
        adjustable = settings_of(method).keys() - self.explicit
        sampling = {name: value for name, value in sampling.items() if name in adjustable}
        method = replace(method, **sampling)  # type: ignore[type-var]
        if unused := sorted(arguments.keys() - SUPPORTED):
            log.warning("Unsupported generation arguments are ignored: %s.", ", ".join(unused))
        max_tokens = next((int(arguments[name]) for name in LENGTHS if arguments.get(name)), self.max_gen_toks)
        context = min(engine.context, (reward and reward.context) or engine.context)
        room = context - max_tokens
        check(room > 0, f"max_gen_toks must leave room for a prompt in the context of {context} tokens, got {max_tokens}.")
        prompts = [self._prompt(text, room) for text in contexts]
        until = arguments.get("until") or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        decoder = Decoder(engine, reward, method)
        results = decoder.batch(prompts, seed=self.seed, max_tokens=max_tokens, stop=stop, progress=progress)
        return [result.text for result in results]

    def _prompt(self, context: str, room: int) -> Prompt:
        """Return the last `room` tokens of a context as a prompt."""
        ids = self.tok_encode(context)
        template, vocabulary = self.tokenizer.chat_template, self.decoder.engine.vocabulary
        if len(ids) <= room:
            return Prompt(context, tuple(ids), self._rendered.get(context), vocabulary, template)
        log.warning("A prompt of %d tokens is truncated to its last %d tokens.", len(ids), room)
        return Prompt(self.tokenizer.decode(ids[-room:]), tuple(ids[-room:]), None, vocabulary, template)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        length = self.decoder.engine.context
        windows: list[Continuation] = []
        counts = []
        for request in requests:
            pairs = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id, length, 1)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            counts.append(len(windows))
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        sums = [sum(scores[a:b]) for a, b in zip([0, *counts], counts, strict=False)]
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def _loglikelihood_tokens(
        self, requests: Sequence[Continuation], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        engine = self.decoder.engine
        results: dict[int, tuple[float, bool]] = {}

        async def score(number: int) -> None:
            key, before, after = requests[number]
            ids = (before + after)[-(engine.context + 1) :]
            after = after[-(len(ids) - 1) :]
            split = len(ids) - len(after)
            prompt = Prompt("", tuple(ids[:split]), None, engine.vocabulary)
            logits = await engine.logits(prompt, Response("", tuple(after[:-1])), len(after))
            tokens = np.array(after)[:, None]
            total = float(np.take_along_axis(log_softmax(logits), tokens, -1).sum())
            results[number] = total, bool((logits.argmax(-1) == tokens[:, 0]).all())
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, results[number])

        def failed(number: int, error: CardsError) -> None:
            raise error

        show, numbers = False if disable_tqdm else None, range(len(requests))
        background().run(run_concurrently(numbers, score, failed, engine.rows, show, "log-likelihoods"))
        return [results[number] for number in numbers]


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except CardsError as error:
        show_error(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()

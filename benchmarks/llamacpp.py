"""Compare llama.cpp in this process with llama.cpp alone and with transformers, side by side, on a GGUF file.

    python benchmarks/llamacpp.py FILE.gguf [--folder TRANSFORMERS_FOLDER] [--check]

Contestants, each with 1, 8 and 32 requests of exactly --max-tokens tokens:

    raw           a loop of `llama_decode` through ctypes that draws nothing: the floor
    completion    `create_completion` of llama-cpp-python, greedy, one request after another
    plain         our plain sampling
    cards         our CARDS with a reward that counts words; its time is reported apart, and speed is of all drawn tokens
    generate      `generate` of transformers in bfloat16, from --folder
    generate32    the same in float32
    transformers  our transformers engine in float32, from --folder

Each repeat runs every contestant once; medians over the repeats are reported.

--check compares greedy responses with those of `create_completion`, with one slot and the same sizes of batches. A response
that differs must do so at a tie of logits. It also compares the joined text of segments with the text of all their tokens, in
ten languages. It fails if anything differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cards import CARDS, Decoder, FixedLength
from cards.backends.llamacpp.engine import LlamaEngine
from cards.backends.llamacpp.library import library
from cards.engines.base import Ask, Engine
from cards.events import Response
from cards.methods import Vanilla
from cards.methods.base import collect_segments
from cards.registry import load_engine
from cards.rewards import FunctionReward
from cards.sampling import Sampling
from workload import HERE, machine

REQUESTS = (1, 8, 32)
CHECKED = 48  # tokens of each response that --check compares
TEXT = "Once upon a time, in a small village by the sea, there lived"
LANGUAGES = (
    "中国的首都是北京。",
    "むかしむかし、あるところに",
    "옛날 옛적에 한 마을에",
    "กรุงเทพมหานครเป็นเมืองหลวงของ",
    "भारत की राजधानी नई दिल्ली है",
    "عاصمة فرنسا هي",
    "Столица России — это",
    "Στην πρωτεύουσα της Ελλάδας είναι",
    "Thủ đô của Việt Nam là",
    "Weather today: ☀️🌧️ and my mood: 😀",
)
Run = Callable[[int], tuple[float, int]]  # number of requests -> seconds, tokens


def raw_loop(engine: LlamaEngine, max_tokens: int) -> Run:
    """Return the run that decodes rows of constant tokens with llama.cpp alone, in the context of the engine."""
    cache: Any = engine.scheduler.slots.cache
    tokens = engine.encode(TEXT).token_ids

    def run(count: int) -> tuple[float, int]:
        def loop() -> float:
            start = time.perf_counter()
            for row in range(count):
                cache.read([(row, 0, tokens)], [1])
            for position in range(len(tokens), len(tokens) + max_tokens - 1):
                rows = np.arange(count, dtype=np.int32)
                full = np.full(count, position, np.int32)
                cache._decode(np.full(count, tokens[-1], np.int32), rows, full, np.ones(count, bool))
            return time.perf_counter() - start

        seconds = engine.scheduler.worker.call(loop)
        cache.filled[:] = cache.length + 1
        engine.forget()
        return seconds, count * max_tokens

    return run


def completion(path: str, max_tokens: int, threads: int | None) -> Run:
    model = library().Llama(path, n_ctx=512, n_threads=threads, verbose=False)
    bias = {token: -1e9 for token in range(model.n_vocab()) if library().llama_vocab_is_eog(model._model.vocab, token)}

    def run(count: int) -> tuple[float, int]:
        start = time.perf_counter()
        for i in range(count):
            model.create_completion(prompt_of(i), max_tokens=max_tokens, temperature=0.0, logit_bias=bias)
        return time.perf_counter() - start, count * max_tokens

    return run


def plain(engine: Engine, max_tokens: int) -> Run:
    decoder = Decoder(engine, None, Vanilla())

    def run(count: int) -> tuple[float, int]:
        engine.forget()
        start = time.perf_counter()
        results = decoder.batch([prompt_of(i) for i in range(count)], max_tokens=max_tokens)
        return time.perf_counter() - start, sum(result.usage.lm_decoded_tokens for result in results)

    return run


def cards_run(engine: Engine, max_tokens: int, scoring: list[float]) -> Run:
    def score(prompt: str, response: str) -> float:
        start = time.perf_counter()
        value = len(set(response.split())) / (1 + len(response.split()))
        scoring.append(time.perf_counter() - start)
        return value

    decoder = Decoder(engine, FunctionReward(score, target=0.9), CARDS())

    def run(count: int) -> tuple[float, int]:
        engine.forget()
        scoring.clear()
        start = time.perf_counter()
        results = decoder.batch([prompt_of(i) for i in range(count)], max_tokens=max_tokens)
        return time.perf_counter() - start, sum(result.usage.lm_decoded_tokens for result in results)

    return run


def generate(folder: str, max_tokens: int, dtype: str) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def run(count: int) -> tuple[float, int]:
        inputs = tokenizer([prompt_of(i) for i in range(count)], return_tensors="pt", padding=True)
        start = time.perf_counter()
        model.generate(**inputs, min_new_tokens=max_tokens, max_new_tokens=max_tokens, do_sample=True, top_k=0)
        return time.perf_counter() - start, count * max_tokens

    return run


def prompt_of(number: int) -> str:
    return f"{TEXT} {number}"


def check(path: str, threads: int | None) -> None:
    """Compare greedy responses with those of llama-cpp-python, and the text of segments with that of all their tokens.

    Raises AssertionError if a response differs without a tie, or a text differs.
    """
    sizes: dict[str, Any] = {"n_batch": 512, "n_ubatch": 512}
    engine = LlamaEngine.load(path, context=512, slots=1, threads=threads, flash_attn=False, **sizes)
    model = library().Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, swa_full=True, verbose=False, **sizes)
    kinds = Counter[str]()
    for prompt in (TEXT, "The capital of France is", "1, 1, 2, 3, 5, 8, 13,", *LANGUAGES):
        kind = compared(engine, model, prompt)
        kinds[kind.partition(" ")[0]] += 1
        print(f"{kind}: {prompt}", flush=True)
    print(f"Greedy responses and create_completion: {dict(kinds)}")
    wrong = [prompt for prompt in LANGUAGES if not joins(engine, prompt)]
    print(f"Text of segments: equal for {len(LANGUAGES) - len(wrong)} of {len(LANGUAGES)} languages")
    assert not kinds["DIFFERENT"], "A greedy response differs without a tie."
    assert not wrong, wrong


def compared(engine: LlamaEngine, model: Any, prompt: str) -> str:
    """Return "equal", or "tie" or "DIFFERENT" with the token and the difference of the two logits.

    Logits are a tie if they are closer than the rounding of the keys and values, which are kept in float16.
    """
    result = Decoder(engine, None, Vanilla(temperature=0.0))(prompt, max_tokens=CHECKED)
    if result.text == model.create_completion(prompt, max_tokens=CHECKED, temperature=0.0)["choices"][0]["text"]:
        return "equal"
    encoded = engine.encode(prompt)
    expected = list(islice(model.generate(list(encoded.token_ids), temp=0.0), CHECKED))
    for i, (token, other) in enumerate(zip(result.token_ids, expected, strict=False)):
        if token != other:
            logits = asyncio.run(engine.logits(encoded, Response(token_ids=tuple(expected[:i]))))[-1]
            gap = abs(float(logits[token] - logits[other]))
            kind = "tie" if gap <= 8 * np.finfo(np.float16).eps * float(np.abs(logits).max()) else "DIFFERENT"
            return f"{kind} at token {i} (logits {gap:.2g} apart)"
    return "DIFFERENT text of equal tokens"


def joins(engine: LlamaEngine, prompt: str) -> bool:
    """Return whether the texts of segments of 3 tokens join to what `decode` adds to the prompt."""

    async def respond() -> tuple[str, tuple[int, ...]]:
        encoded, response = engine.encode(prompt), Response()
        while response.finish_reason is None:
            left = CHECKED - len(response.token_ids)
            ask = Ask(encoded, response, left, FixedLength(3), Sampling(), segment=len(response.token_ids))
            response += (await collect_segments(engine, ask))[0]
        return response.text, response.token_ids

    text, token_ids = asyncio.run(respond())
    before = engine.encode(prompt).token_ids
    kept = [token for token in token_ids if token not in engine.end_ids]
    whole: str = engine.tokenizer.decode([*before, *kept])
    return bool(engine.tokenizer.decode(before) + text == whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--folder", help="the model in the format of transformers")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, nargs="+", default=REQUESTS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "llamacpp.json")
    options = parser.parse_args()
    if options.check:
        check(options.file, options.threads)
        return
    engine = LlamaEngine.load(options.file, context=512, threads=options.threads)
    engine.end_ids = frozenset()  # so that all responses have the same length
    scoring: list[float] = []
    runs: dict[str, Run] = {
        "raw": raw_loop(engine, options.max_tokens),
        "completion": completion(options.file, options.max_tokens, options.threads),
        "plain": plain(engine, options.max_tokens),
        "cards": cards_run(engine, options.max_tokens, scoring),
    }
    if options.folder:
        runs["generate"] = generate(options.folder, options.max_tokens, "bfloat16")
        runs["generate32"] = generate(options.folder, options.max_tokens, "float32")
        other = load_engine(options.folder, context=512, threads=options.threads, dtype="float32")
        other.end_ids = frozenset()
        runs["transformers"] = plain(other, options.max_tokens)
    rows = []
    for count in options.requests:
        seconds: dict[str, list[float]] = {name: [] for name in [*runs, "reward"]}
        for run in runs.values():
            run(1)
        for _ in range(options.repeats):
            for name, run in runs.items():
                elapsed, tokens = run(count)
                seconds[name].append((elapsed - (sum(scoring) if name == "cards" else 0.0)) / tokens)
            seconds["reward"].append(sum(scoring))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {name: medians[name] / medians["raw"] for name in runs}
        rows.append({"requests": count, "seconds_per_token": medians, "times_raw": ratios})
        print(count, {name: f"{1e3 * medians[name]:.2f} ms ({ratios[name]:.2f})" for name in runs})
    options.output.write_text(json.dumps({"machine": machine("cpu", "auto"), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Check every LM and RM family of transformers: each runs exactly, or is refused with the reason.

    python benchmarks/families.py            check the families that are not in results/families.json, and write the table
    python benchmarks/families.py llama t5   check these families again

A family is a small model with random weights (small_models.py), in float32 and in bfloat16. An LM is compared with its own
forward pass on a text that grows beyond its windows, after forks and in batches, and with `generate`. An RM is compared with
its own forward pass on single texts.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import logging as transformers_logging

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.own_cache import OwnCache
from cards.backends.local.readers import CausalScorer
from cards.backends.local.rewards import ClassifierReward
from cards.engines.ask import Ask
from cards.errors import CardsError
from cards.events import Prompt, Response
from cards.sampling import Sampling
from small_models import SETTINGS, WORDS, small_config, small_model, small_tokenizer
from workload import HERE

RESULTS = HERE / "results" / "families.json"
PAGE = HERE.parent / "docs" / "families.md"
KINDS = {"lm": AutoModelForCausalLM, "rm": AutoModelForSequenceClassification}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGEST = 8_000_000  # parameters
PROMPT, GROWN = 20, 24  # tokens; the windows have 16
EXACT = {"float32": 2e-3, "bfloat16": 0.05}  # relative error that is accepted without comparison with the model's own
WORSE = 3.0  # accepted error in units of the model's own rounding error


def families(kind: str) -> dict[str, type]:
    """Return the configuration class of each family that has a model of this kind."""
    mapping: Any = KINDS[kind]._model_mapping
    return {name: mapping._load_attr_from_module(name, mapping._config_mapping[name]) for name in mapping._model_mapping}


def check(kind: str, family: str, dtype: str) -> dict[str, Any]:
    """Return how a family runs: its path, the reason, and what is wrong (None if nothing is)."""
    try:
        settings = SETTINGS.get(family, {}) | ({"num_labels": 1} if kind == "rm" else {})
        config = small_config(families(kind)[family], settings)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in KINDS[kind].from_config(config).parameters())
        if size > LARGEST:
            return {"path": "not built", "why": f"{size} parameters are the fewest."}
        model = small_model(KINDS[kind], config, DTYPES[dtype])
    except Exception as error:  # of any kind, because each family has its own code
        return {"path": "not built", "why": one_line(error)}
    try:
        forward(model, [*range(3, 13), 1])
    except Exception as error:
        return {"path": "not built", "why": f"Its own forward pass fails: {one_line(error)}"}
    messages = Messages()
    logging.getLogger("cards").addHandler(messages)
    try:
        path, wrong = (check_lm if kind == "lm" else check_rm)(model)
    except CardsError as error:
        return {"path": "refused", "why": one_line(error)}
    except Exception as error:
        return {"path": "error", "why": messages.text, "wrong": f"{type(error).__name__}: {one_line(error)}"}
    finally:
        logging.getLogger("cards").removeHandler(messages)
    return {"path": path, "why": messages.text, "wrong": wrong}


class Messages(logging.Handler):
    """The warnings of the package."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


def one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


@torch.inference_mode()
def forward(model: PreTrainedModel, ids: Sequence[int], **options: Any) -> Tensor:
    """Return the model's own outputs for one text."""
    return cast(Tensor, model(input_ids=torch.tensor([list(ids)]), **options).logits[0].float())


def check_lm(model: PreTrainedModel) -> tuple[str, str | None]:
    truth = copy.deepcopy(model).float()
    engine = TransformersEngine(copy.deepcopy(model), small_tokenizer(), slots=4, name="model")
    cache = engine.scheduler.slots.cache
    path = "slots" if not isinstance(cache, OwnCache) else "own cache" if cache.argument else "whole text"
    ours, own, exact = [], [], []
    for texts in growing_texts():
        found = read(engine, texts)
        for text, logits in zip(texts, found, strict=True):
            ours.append(logits)
            own.append(forward(model, text)[-1])
            exact.append(forward(truth, text)[-1])
    dtype = str(model.dtype).removeprefix("torch.")
    wrong = compare(ours, own, exact, dtype)
    text = random_text(PROMPT + GROWN, 9)
    several = asyncio.run(engine.logits(Prompt("", tuple(text[:PROMPT])), Response("", tuple(text[PROMPT:])), GROWN))
    each = [forward(model, text[:end])[-1] for end in range(PROMPT + 1, len(text) + 1)]
    whole = [forward(truth, text[:end])[-1] for end in range(PROMPT + 1, len(text) + 1)]
    wrong = wrong or prefixed("several positions", compare([torch.tensor(row) for row in several], each, whole, dtype))
    return path, wrong or prefixed("generate", check_greedy(model, engine, path != "whole text"))


def prefixed(name: str, problem: str | None) -> str | None:
    return problem and f"{name}: {problem}"


def random_text(length: int, seed: int) -> list[int]:
    return torch.randint(3, WORDS, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def growing_texts() -> Iterator[list[list[int]]]:
    """Yield batches of texts: one that grows, two that fork from it, several of different lengths, and the first again."""
    text = random_text(PROMPT + GROWN, 0)
    for end in range(PROMPT, PROMPT + GROWN):
        yield [text[:end]]
    for start in (PROMPT - 4, PROMPT + 11):
        for extra in range(1, 4):
            yield [text[:start] + random_text(3, seed)[:extra] for seed in (1, 2, 3)]
    yield [random_text(length, length) for length in (5, 17, 40, 11, 40, 3)]
    yield [text[: PROMPT + 2], text]


def read(engine: TransformersEngine, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    async def run() -> list[Any]:
        return await asyncio.gather(
            *(engine.logits(Prompt("", tuple(text[:3])), Response("", tuple(text[3:]))) for text in texts)
        )

    return [torch.tensor(logits[-1]) for logits in asyncio.run(run())]


def compare(ours: Sequence[Tensor], own: Sequence[Tensor], exact: Sequence[Tensor], dtype: str) -> str | None:
    """Return what is wrong with our outputs, if their errors are larger than those of the model's own forward pass."""
    scale = torch.stack(list(exact)).norm(dim=1).median().clamp(min=1e-6)
    errors = [(torch.stack(list(outputs)) - torch.stack(list(exact))).norm(dim=1) / scale for outputs in (ours, own)]
    for quantile in (0.5, 0.9):
        found, noise = (error.nan_to_num(float("inf")).quantile(quantile).item() for error in errors)
        if found > EXACT[dtype] and found > WORSE * noise:
            return f"{quantile:.0%} of the errors are up to {found:.2g} (of the model itself: {noise:.2g})"
    return None


def check_greedy(model: PreTrainedModel, engine: TransformersEngine, use_cache: bool) -> str | None:
    """Compare a greedy response with `generate`. Tokens may differ where the model's own logits tie within its rounding."""
    prompt = random_text(PROMPT, 5)
    made = generated(model, prompt, use_cache)
    ask = Ask(Prompt("", tuple(prompt)), Response("", ()), GROWN, sampling=Sampling(temperature=0))

    async def first() -> list[int]:
        async for segments in engine.propose(ask):
            return list(segments[0].token_ids)
        return []

    ours = asyncio.run(first())
    for i, (token, expected) in enumerate(zip(ours, made, strict=False)):
        if token != expected:
            logits = forward(model, [*prompt, *made[:i]])[-1]
            gap = (logits.max() - logits[token]).item()
            tie = 8 * torch.finfo(model.dtype).eps * logits.abs().max().item()
            return None if gap <= tie else f"token {i} is {token} and not {expected}; its logit is {gap:.2g} below the largest"
    return None


def generated(model: PreTrainedModel, prompt: Sequence[int], use_cache: bool) -> list[int]:
    options: dict[str, Any] = {
        "max_new_tokens": GROWN,
        "use_cache": use_cache,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    ids = torch.tensor([list(prompt)])
    generate: Any = model.generate
    return cast("list[int]", generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())


def check_rm(model: PreTrainedModel) -> tuple[str, str | None]:
    model.config.get_text_config().pad_token_id = 0
    truth = copy.deepcopy(model).float()
    reward = ClassifierReward(copy.deepcopy(model), small_tokenizer(), slots=4, name="model")
    path = "slots" if isinstance(reward.reader, CausalScorer) else reward.reader.layout
    end = [1] if model.config.is_encoder_decoder else []
    rows = [[*random_text(length, length + i), *end] for i, length in enumerate((5, 17, 17, 50, 60, 8, 30, 21, 33, 44))]
    own, exact = ([forward(each, row) for row in rows] for each in (model, truth))
    together = asyncio.run(reward.read(rows))
    alone = [asyncio.run(reward.read([row]))[0] for row in reversed(rows)][::-1]
    dtype = str(model.dtype).removeprefix("torch.")
    for name, found in (("batch", together), ("alone", alone)):
        if problem := compare([torch.tensor([value]) for value in found], own, exact, dtype):
            return path, f"{name}: {problem}"
    return path, None


HEADER = ["family", "path", "why"]
PATHS = {
    "slots": "slots",
    "own cache": "own cache",
    "whole text": "whole text",
    "padded": "batches",
    "head": "texts of equal length",
    "equal": "texts of equal length",
    "single": "single texts",
    "refused": "refused",
    "not built": "not checked",
}


def table(results: dict[str, Any], kind: str) -> str:
    """Return the rows of all families of a kind: path (both, if it depends on the dtype) and the reason."""
    lines = [HEADER, ["---"] * len(HEADER)]
    for name in sorted(results):
        if name.startswith(f"{kind} "):
            found = {dtype: results[name][dtype] for dtype in DTYPES}
            paths = [PATHS[run["path"]] for run in found.values()]
            both = paths[0] if len(set(paths)) == 1 else ", ".join(map(" in ".join, zip(paths, DTYPES, strict=True)))
            lines.append([name.partition(" ")[2], both, reason(next((r["why"] for r in found.values() if r["why"]), ""))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reason(why: str) -> str:
    """Return the part of a message that says why, without the name of the model and numbers."""
    for start in ("slots: ", "because ", "is not a causal LM: ", "forward pass fails: ", " fails: "):
        why = why.rpartition(start)[2]
    why = re.sub(r" by [0-9.e+-]+ \(accepted: [0-9.e+-]+\)", "", why)
    return why.replace("|", "\\|").rstrip(".")[:120]


def write_page(results: dict[str, Any]) -> None:
    """Write the tables between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        start, end = f"<!-- {kind} families -->", f"<!-- end of {kind} families -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n\n{table(results, kind)}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = sys.argv[1:]
    for kind in KINDS:
        for family in families(kind):
            name = f"{kind} {family}"
            if family not in chosen if chosen else name in results:
                continue
            begun = time.perf_counter()
            results[name] = {dtype: check(kind, family, dtype) for dtype in DTYPES}
            print(f"{name} ({time.perf_counter() - begun:.1f} s): {json.dumps(results[name])}", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    write_page(results)
    wrong = [name for name, found in results.items() if any(run.get("wrong") for run in found.values())]
    print(f"{len(results)} families, wrong: {', '.join(wrong) or 'none'}")


if __name__ == "__main__":
    main()

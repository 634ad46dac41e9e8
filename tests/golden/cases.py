"""The golden cases: every method with settings that is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cards

QUESTION = "What did you think of the new Star Wars film?"
CONVERSATION = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Do you have a dog?"},
    {"role": "assistant", "content": "Yes, he is called Max."},
    {"role": "user", "content": "What does he like to eat?"},
]
PROMPTS: list[Any] = [[{"role": "user", "content": QUESTION}], "Once upon a time", CONVERSATION]
SEED = 11  # of the first request; each of the following requests has the next seed
REPEATS = 2  # how often all prompts are asked, each time with other seeds
MAX_TOKENS = 20

# Usage that depends on timing, found by recording several times on an idle and on a busy machine: which texts share a step,
# and which slot holds a prefix when the next text is read. It varies where several texts are decoded or scored at once, in
# one request or in several. Seconds are left out everywhere.
CACHE = frozenset(
    f"{model}_{count}" for model in ("lm", "draft", "rm") for count in ("steps", "prefill_tokens", "cached_tokens", "tokens")
) | {"flops"}
WIDTH = CACHE | {"lm_decoded_tokens", "lm_wasted_tokens", "rm_calls", "rounds"}  # candidates that were drawn ahead in vain
NONE = frozenset[str]()


@dataclass(frozen=True)
class Case:
    """A method with settings, on the embedded models. `varies`: usage of requests alone that depends on timing."""

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    reward: str | None = "tiny"
    engine: dict[str, Any] = field(default_factory=dict)  # options of load_engine
    options: dict[str, Any] = field(default_factory=dict)  # options of the request, besides max_tokens and seed
    prompts: int = len(PROMPTS)
    repeats: int = REPEATS
    varies: frozenset[str] = CACHE
    together: frozenset[str] = CACHE  # the same for requests that are decoded together


ONE = {"width": 1, "max_rejections": 8}  # candidates one by one: the usage is then a function of the seed

METHODS: dict[str, Case] = {
    # segments
    "cards": Case("cards", ONE, varies=NONE),
    "cards-width-4": Case("cards", {"width": 4}, prompts=2, repeats=1),
    "cards-auto-width": Case("cards", prompts=2, repeats=1, varies=WIDTH, together=WIDTH),
    "cards-hard-fallback": Case(
        "cards",
        ONE | {"acceptance": "hard", "target": 4.0, "alpha": 1.0, "max_rejections": 3},
        prompts=2,
        repeats=1,
        varies=NONE,
    ),
    "cards-quantile": Case("cards", ONE | {"quantile": 0.5, "pilots": 4}),
    "cards-mcp": Case("cards", ONE | {"measure": "mcp", "entropy_threshold": 0.6}, prompts=2, repeats=1, varies=NONE),
    "cards-evidential": Case(
        "cards", ONE | {"measure": "evidential", "entropy_threshold": 0.5}, prompts=2, repeats=1, varies=NONE
    ),
    "cards-fixed-boundary": Case("cards", ONE | {"boundary": cards.FixedLength(maximum=6)}, prompts=2, repeats=1, varies=NONE),
    "cards-punctuation": Case("cards", ONE | {"boundary": cards.Punctuation()}, prompts=2, repeats=1, varies=NONE),
    "cards-step": Case("cards", ONE | {"boundary": cards.Step()}, prompts=2, repeats=1, varies=NONE),
    "cards-whole": Case("cards", ONE | {"boundary": cards.Whole()}, prompts=2, repeats=1, varies=NONE),
    "cards-draft": Case("cards", ONE, engine={"draft": "tiny-draft", "gamma": 3}, prompts=2, repeats=1, varies=NONE),
    "cards-stop": Case("cards", ONE, options={"stop": [".", "the"]}, prompts=2, repeats=1, varies=NONE),
    "cards-two-slots": Case(
        "cards", ONE | {"temperature": 1.0, "top_p": 0.9}, engine={"slots": 2}, prompts=2, repeats=1, varies=NONE
    ),
    "cascade": Case("cascade", ONE, repeats=1, varies=NONE),
    "cascade-coupled": Case("cascade", ONE | {"coupled": True, "guide_target": 0.0}, prompts=2, repeats=1, varies=NONE),
    "stars": Case("stars", ONE | {"block": 6}, varies=NONE),
    # What it found in the cache depended on memory addresses: a finished request could have the id of the next one.
    "rejection-sampling": Case("rejection-sampling", {"width": 1, "max_candidates": 5}),
    # search
    "blockwise": Case("blockwise", {"candidates": 3, "block": 8}),
    "ada-search": Case("ada-search", {"candidates": 3, "block": 8}),
    "ada-search-linear": Case("ada-search", {"candidates": 3, "block": 8, "schedule": "linear"}, prompts=2, repeats=1),
    "cbs": Case("cbs", {"beams": 2, "children": 2, "block": 8}),
    "tree-bon": Case("tree-bon", {"n": 4, "children": 2, "layers": 3}),
    "tree-bon-guide": Case("tree-bon", {"n": 4, "children": 2, "layers": 2, "guide": "tiny-gold"}, prompts=2, repeats=1),
    "speculative-rejection": Case("speculative-rejection", {"n": 6, "first": 6}),
    "smc": Case("smc", {"particles": 4}),
    "smc-fixed-boundary": Case(
        "smc", {"particles": 4, "resample": 1.0, "boundary": cards.FixedLength(maximum=6)}, prompts=2, repeats=1
    ),
    "prm-beam-search": Case("prm-beam-search", {"beams": 2, "children": 2, "boundary": cards.FixedLength(maximum=6)}),
    "dvts": Case("dvts", {"trees": 2, "children": 2, "boundary": cards.FixedLength(maximum=6)}),
    "particle-filtering": Case("particle-filtering", {"particles": 4, "boundary": cards.FixedLength(maximum=6)}),
    "particle-gibbs": Case(
        "particle-gibbs", {"particles": 3, "boundary": cards.FixedLength(maximum=6), "take": "sample"}, prompts=2, repeats=1
    ),
    "rain": Case("rain", {"searches": 2, "children": 2}),
    # whole responses
    "best-of-n": Case("best-of-n", {"n": 4}),
    "soft-best-of-n": Case("soft-best-of-n", {"n": 4}),
    "pessimism": Case("pessimism", {"n": 4}),
    "mbr": Case("mbr", {"n": 4}, reward=None),
    "mbr-rouge": Case("mbr", {"n": 4, "utility": "rouge-l"}, reward=None, prompts=2, repeats=1),
    "mbr-best-of-n": Case("mbr-best-of-n", {"n": 4}),
    "qe-rerank": Case("qe-rerank", {"n": 4, "keep": 2}),
    "self-consistency": Case("self-consistency", {"n": 4, "pattern": "[a-z]+"}, reward=None),
    "path-consistency": Case("path-consistency", {"branches": 4, "window": 2, "pattern": "[a-z]+"}, reward=None),
    "adaptive-consistency": Case("adaptive-consistency", {"n": 6, "pattern": "[a-z]+"}, reward=None),
    "self-certainty": Case("self-certainty", {"n": 4}, reward=None),
    "self-certainty-vote": Case(
        "self-certainty", {"n": 4, "power": 1.0, "pattern": "[a-z]+"}, reward=None, prompts=2, repeats=1
    ),
    "deepconf": Case(
        "deepconf", {"n": 6, "warmup": 3, "keep": 0.5, "window": 4, "chunk": 4, "pattern": "[a-z]+"}, reward=None, repeats=1
    ),
    "adabon": Case("adabon", {"n": 8, "pilots": 3, "price": 0.3}),
    "optimal-stopping": Case("optimal-stopping", {"n": 8, "pilots": 3, "price": 0.3}),
    "best-of-poisson": Case("best-of-poisson", {"mean": 2.0}),
    "rbon-kl": Case("rbon-kl", {"n": 4, "beta": 0.1}),
    "power-sampling": Case("power-sampling", {"blocks": 2, "steps": 3, "alpha": 2.0}, reward=None),
    "iad": Case("iad", {"iterations": 2, "n": 2}),
    "qalign": Case("qalign", {"steps": 4}),
    "qalign-best": Case("qalign", {"steps": 4, "take": "best"}, prompts=2, repeats=1),
    # two models
    "speculative": Case("vanilla", engine={"draft": "tiny-draft"}, reward=None, varies=NONE),
    "skip-decoding": Case("vanilla", engine={"skip_layers": 0.5}, reward=None, varies=NONE),
    "sss": Case("sss", reward=None, varies=NONE),
    "rsd": Case("rsd", {"boundary": cards.FixedLength(maximum=6)}, varies=NONE),
    "rsd-step": Case("rsd", {"process": "tiny-gold"}, prompts=2, repeats=1, varies=NONE),
    "spec-reason": Case("spec-reason", {"threshold": 0.5, "boundary": cards.FixedLength(maximum=6)}, reward=None),
    "ngram-draft": Case("vanilla", {"temperature": 0.3}, engine={"draft": "ngram:2"}, reward=None, varies=NONE),
    "gsi": Case("gsi", {"n": 2, "boundary": cards.FixedLength(maximum=6)}),
    "cdsl": Case("cdsl", {"lookahead": 4, "candidates": 3}, repeats=1),
    "contrastive-decoding": Case("contrastive-decoding", reward=None, varies=NONE),
    "contrastive-decoding-logits": Case("contrastive-decoding-logits", reward=None, varies=NONE),
    "genarm": Case("genarm", reward=None, varies=NONE),
    "genarm-two-guides": Case(
        "genarm", {"guides": "tiny-aligned,tiny-draft", "weights": (1.0, 0.5)}, reward=None, prompts=2, repeats=1, varies=NONE
    ),
    "rose": Case("rose", {"temperature": 0.7}, reward=None, varies=NONE),
    "safe-decoding": Case("safe-decoding", {"first": 4, "temperature": 0.7}, reward=None, varies=NONE),
    "alignment-aware-decoding": Case("alignment-aware-decoding", {"reference": "tiny-draft"}, reward=None, varies=NONE),
    "dola": Case("dola", {"temperature": 0.7}, reward=None, varies=NONE),
    # token by token
    "args": Case("args", {"top_k": 5}, varies=NONE),
    "rad": Case("rad", {"top_k": 5}, varies=NONE),
    "controlled-decoding": Case("controlled-decoding", {"top_k": 5}, varies=NONE),
    "sia": Case("sia", {"top_k": 5}, varies=NONE),
    "fudge": Case("fudge", {"top_k": 5}, varies=NONE),
    "transfer-q": Case("transfer-q", {"top_k": 3, "lookahead": 3}, repeats=1),
    "deal": Case("deal", {"top_k": 3, "lookahead": 3}, repeats=1),
    "budget-forcing": Case("budget-forcing", {"least": 4, "most": 8}, reward=None, varies=NONE),
    "vanilla": Case("vanilla", reward=None, varies=NONE),
    "vanilla-greedy": Case("vanilla", {"temperature": 0.0, "chunk": None}, reward=None, prompts=2, repeats=1, varies=NONE),
    # kinds of rewards
    "reward-gold": Case("best-of-n", {"n": 3}, reward="tiny-gold", prompts=2, repeats=1),
    "reward-implicit": Case("best-of-n", {"n": 3}, reward="implicit:tiny-aligned,tiny", prompts=2, repeats=1),
    "reward-process": Case("best-of-n", {"n": 3}, reward="process:tiny", prompts=2, repeats=1),
    "reward-self-evaluation": Case("best-of-n", {"n": 2}, reward="self-evaluation:tiny", prompts=2, repeats=1),
    "reward-confidence": Case("best-of-n", {"n": 3}, reward="confidence:tiny?measure=tail&window=4", prompts=2, repeats=1),
    "reward-grade": Case("best-of-n", {"n": 2}, reward="grade:tiny", prompts=2, repeats=1),
    "reward-regex": Case("best-of-n", {"n": 3}, reward="regex:.*[aeiou] [st].*", prompts=2, repeats=1),
    "reward-keywords": Case("best-of-n", {"n": 3}, reward="keywords:the,-it", prompts=2, repeats=1),
    "reward-length": Case("best-of-n", {"n": 3}, reward="length:3-8", prompts=2, repeats=1),
    "reward-json": Case("best-of-n", {"n": 3}, reward="json", prompts=2, repeats=1),
    "reward-sum": Case("best-of-n", {"n": 3}, reward="tiny + keywords:the", prompts=2, repeats=1),
    "reward-implicit-args": Case("args", {"top_k": 4}, reward="implicit:tiny-aligned,tiny", prompts=2, repeats=1),
}

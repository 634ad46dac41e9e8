"""Names of methods and the classes behind them, imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cards.errors import MismatchError, UnknownNameError
from cards.methods.base import setting_fields

if TYPE_CHECKING:
    from cards.engines.base import Engine
    from cards.methods.base import Method
    from cards.rewards.base import Reward

METHODS = {
    "cards": "cards.methods.segments.cards:CARDS",
    "vanilla": "cards.methods.vanilla:Vanilla",
    "cascade": "cards.methods.segments.cascade:Cascade",
    "rain": "cards.methods.search.rain:RAIN",
    "best-of-n": "cards.methods.responses.best_of_n:BestOfN",
    "soft-best-of-n": "cards.methods.responses.soft_best_of_n:SoftBestOfN",
    "pessimism": "cards.methods.responses.pessimism:Pessimism",
    "mbr": "cards.methods.responses.mbr:MBR",
    "mbr-best-of-n": "cards.methods.responses.mbr_best_of_n:MBRBestOfN",
    "qe-rerank": "cards.methods.responses.qe_rerank:QERerank",
    "self-consistency": "cards.methods.responses.self_consistency:SelfConsistency",
    "path-consistency": "cards.methods.responses.path_consistency:PathConsistency",
    "iad": "cards.methods.responses.iad:IAD",
    "qalign": "cards.methods.responses.qalign:QAlign",
    "rejection-sampling": "cards.methods.segments.rejection:RejectionSampling",
    "stars": "cards.methods.segments.stars:STARS",
    "blockwise": "cards.methods.search.blockwise:Blockwise",
    "ada-search": "cards.methods.search.ada_search:AdaSearch",
    "cbs": "cards.methods.search.cbs:CBS",
    "tree-bon": "cards.methods.search.tree_bon:TreeBoN",
    "speculative-rejection": "cards.methods.search.speculative_rejection:SpeculativeRejection",
    "smc": "cards.methods.search.smc:SMC",
    "speculative": "cards.methods.drafts.speculative:Speculative",
    "skip-decoding": "cards.methods.drafts.skip_decoding:SkipDecoding",
    "sss": "cards.methods.drafts.sss:SSS",
    "rsd": "cards.methods.drafts.rsd:RSD",
    "gsi": "cards.methods.drafts.gsi:GSI",
    "cdsl": "cards.methods.drafts.cdsl:CDSL",
    "args": "cards.methods.tokens.args:ARGS",
    "rad": "cards.methods.tokens.rad:RAD",
    "controlled-decoding": "cards.methods.tokens.controlled_decoding:ControlledDecoding",
    "sia": "cards.methods.tokens.sia:SIA",
    "deal": "cards.methods.tokens.deal:DeAL",
    "genarm": "cards.methods.tokens.genarm:GenARM",
    "contrastive-decoding": "cards.methods.tokens.contrastive_decoding:ContrastiveDecoding",
    "contrastive-decoding-logits": "cards.methods.tokens.contrastive_decoding_logits:ContrastiveDecodingLogits",
}

REWARDS = {
    "implicit": "cards.rewards.implicit:ImplicitReward",
    "process": "cards.rewards.process:ProcessReward",
    "steps": "cards.rewards.step_token:StepTokenReward",
    "self-evaluation": "cards.rewards.self_evaluation:SelfEvaluation",
    "value": "cards.rewards.value:ValueReward",
    "regex": "cards.rewards.constraints:RegexReward",
    "keywords": "cards.rewards.constraints:KeywordReward",
    "length": "cards.rewards.constraints:LengthReward",
    "json": "cards.rewards.constraints:JSONReward",
}


def method_class(name: str) -> type[Method]:
    """The class of a method name. Raises UnknownNameError."""
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return cast("type[Method]", _imported(METHODS[name]))


def make_method(name: str, **settings: Any) -> Method:
    """A method by name with settings by name. Raises UnknownNameError or SettingError."""
    cls = method_class(name)
    known = {field.name for field in setting_fields(cls)}
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of method {name!r}:", setting, known)
    return cls(**settings)


def with_models(
    method: Method,
    main: Engine,
    engine_of: Callable[[str], Engine] | None = None,
    reward_of: Callable[[str], Reward] | None = None,
) -> Method:
    """The method with the models that its settings name in place of their names.

    The names are loaded by `load_engine` and `load_reward` unless others are given. Raises MismatchError if one of them has
    other tokens than `main`, the engine that answers.
    """
    engine_of, reward_of = engine_of or load_engine, reward_of or load_reward
    loaded: dict[str, Any] = {}
    for item in setting_fields(method):
        value, kind = getattr(method, item.name), item.metadata.get("loads")
        if kind is None or value is None:
            continue
        if kind == "reward":
            loaded[item.name] = reward_of(value) if isinstance(value, str) else value
            continue
        names: Sequence[str | Engine] = (value,)
        if kind == "engines":
            names = value.split(",") if isinstance(value, str) else value
        engines = tuple(engine_of(name) if isinstance(name, str) else name for name in names)
        for engine in engines:
            if engine.vocabulary != main.vocabulary:
                raise MismatchError(
                    f"Method {method.name!r} needs models that share a tokenizer, and {engine.name!r} ({item.name}) has "
                    f"another than {main.name!r}."
                )
        loaded[item.name] = engines if kind == "engines" else engines[0]
    return replace(method, **loaded) if loaded else method  # type: ignore[type-var]


def load_engine(name: str, **options: Any) -> Engine:
    """The engine of a model name: `tiny`, a folder or a Hugging Face name; one of these after `vllm:`; an http(s) address."""
    if name.startswith("vllm:"):
        from cards.backends.vllm.engine import VLLMEngine

        return VLLMEngine.load(name.removeprefix("vllm:"), **options)
    if name.startswith(("http://", "https://")):
        from cards.backends.http.connect import connect_engine

        return connect_engine(name, **options)
    from cards.backends.local.engine import TransformersEngine

    return TransformersEngine.load(name, **options)


def load_reward(name: str, **options: Any) -> Reward:
    """The reward of a model name (`tiny`, a folder or a Hugging Face name; one of these after `vllm:`; an http(s) address), or
    of a kind in REWARDS and its details.

    `tiny + json` is the sum of two, its target the sum of theirs. Raises UnknownNameError or SettingError.
    """
    if " + " in name:
        from cards.rewards.combine import WeightedSum

        return WeightedSum.of([load_reward(part.strip(), **options) for part in name.split(" + ")])
    if name.startswith("vllm:"):
        from cards.backends.vllm.rewards import VLLMReward

        return VLLMReward.load(name.removeprefix("vllm:"), **options)
    if name.startswith(("http://", "https://")):
        from cards.backends.http.connect import connect_reward

        return connect_reward(name, **options)
    kind, colon, details = name.partition(":")
    if kind in REWARDS:
        return cast("Reward", _imported(REWARDS[kind]).named(details, **options))
    if colon and not Path(name).exists():
        raise UnknownNameError("kind of reward", kind, REWARDS, "Without a colon, a reward is the name of a model.")
    from cards.backends.local.rewards import ClassifierReward

    return ClassifierReward.load(name, **options)


def _imported(path: str) -> Any:
    module, attribute = path.split(":")
    return getattr(import_module(module), attribute)

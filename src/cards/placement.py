"""Options of model loaders: device, dtype, cache slots, context, chat template, CPU threads and draft."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from cards.backends.llamacpp.options import parse_options
from cards.engines.base import Engine
from cards.engines.loader import EMBEDDED, Checked, check_engine, is_embedded
from cards.engines.prompt_lookup import is_lookup
from cards.errors import MismatchError, UnknownNameError, check
from cards.methods.base import Method
from cards.prompts import check_template
from cards.registry import check_defaults, load_engine, load_reward, models_of, read_mix
from cards.rewards.base import Reward
from cards.rewards.loader import check_reward
from cards.settings import check_settings, setting

MODEL = (
    "Language model: tiny, a folder, a GGUF file, a Hugging Face name (NAME or NAME@REVISION), vllm:NAME, or an http:// "
    "address."
)
REWARD = "Reward: a model, named like --model, another kind of reward (docs/rewards.md), or none."
GOLD = "Reward model used only for grading, or none."
REWARD_UNSET = "tiny for the embedded models"
DRAFTING = ("draft", "gamma", "skip_layers")
ON_TOP = (*DRAFTING, "mix", "chat_template")  # options for the language model alone
MIX = "Mixture that replaces the LM: a token-level method with its models, such as proxy-tuning:tuned=A,untuned=B."


def reward_for(model: str, reward: str | None, methods: Iterable[Method] = ()) -> str:
    """Return the name of the reward of a command. The default is the embedded reward, but only for the embedded models.

    Raises SettingError if one of the methods needs a reward and there is none, or a setting needs another default, and
    UnknownNameError for a likely typing error in the name of an embedded model.
    """
    name = reward or ("tiny" if is_embedded(model) else "none")
    if not is_embedded(model) and not Path(model).exists() and get_close_matches(model, EMBEDDED, cutoff=0.7):
        raise UnknownNameError("model", model, EMBEDDED)
    for method in methods:
        check_defaults(method, model)
        check(
            name != "none" or "reward" not in method.needed,
            f"Method {method.name!r} needs a reward, "
            + ("but --reward is none. " if reward else f"and only the embedded models have a default one, not {model!r}. ")
            + "Choose one with --reward, or a method that needs none, such as vanilla (see `cards methods`).",
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Options for `load_engine` and `load_reward`. None means the default of the back end. Raises SettingError."""

    device: str = setting("auto", help="Device: auto, cpu, cuda, cuda:1, ...")
    dtype: str = setting("auto", help="Data type: auto, float32, bfloat16 or float16.")
    trust_remote_code: bool = setting(False, help="Run Python code that comes with models. Read it first.")
    slots: int | None = setting(None, help="Number of cache slots.", at_least=1, unset="chosen by the back end")
    context: int | None = setting(None, help="Maximum number of tokens of prompt and response.", at_least=2)
    chat_template: str | None = setting(
        None, help="Chat template for the language model: a .jinja file, or Jinja text.", unset="that of the model"
    )
    mix: str | None = setting(None, help=MIX)
    threads: int | None = setting(
        None,
        help="Number of CPU threads for models in this process.",
        at_least=1,
        unset="the CPU cores and quota of this process, fewer under load",
    )
    llama: tuple[str, ...] = setting(
        (), help="Option of llama.cpp for GGUF files, such as n_gpu_layers=20 or flash_attn=no (repeatable)."
    )
    draft: str | None = setting(
        None, help="Draft model for exact speculative sampling, with the same tokenizer; ngram copies drafts from the text."
    )
    gamma: int = setting(4, help="Number of draft tokens per round.", at_least=1)
    skip_layers: float | None = setting(
        None, help="Draft with the model itself, without this fraction of its layers.", above=0, below=1
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.chat_template is not None:
            check_template(self.chat_template)
        if self.mix is not None:
            read_mix(self.mix)
        parse_options(self.llama)

    def load_engine(self, name: str) -> Engine:
        """Load the LM of this name, with its chat template, its mixture and its draft. Raises the errors of `load_engine`."""
        return load_engine(name, **self.on_top, **self.options)

    def load_part(self, name: str) -> Engine:
        """Load the LM that a setting of a method names, with the same options but without a mixture and a draft."""
        return load_engine(name, **self.options)

    def load_reward(self, name: str) -> Reward:
        """Load the reward of this name, with the same options."""
        return load_reward(name, **self.options)

    def check(
        self,
        names: Mapping[str, str],
        methods: Iterable[Method] = (),
        check_chats: Callable[[bool], None] | None = None,
    ) -> list[Checked]:
        """Check the models of a command before any weights are read, and return those whose weights can be fetched.

        names: the name of the LM under `--model`, and those of rewards under other options. Models that settings of the
        methods name are checked too. check_chats: is called with whether the LM has a chat template, if that is known.
        Raises its errors and those of `load_engine` and `load_reward`.
        """
        found = {option: self._check(option, name) for option, name in names.items()}
        for chats in (checked.chats for checked in found.get("--model", ())):
            if check_chats is not None and (chats is not None or self.chat_template is not None):
                check_chats(bool(chats) or self.chat_template is not None)
        parts = [("--draft", self.draft)] if self.draft and not is_lookup(self.draft) else []
        for method in [*methods, *([] if self.mix is None else [read_mix(self.mix)])]:
            for flag, name, kind in models_of(method):
                if kind == "reward":
                    found[f"{method.name} {flag}"] = check_reward(name, **self.options)
                else:
                    parts.append((flag, name))
        for flag, name in parts:
            found[f"{flag} {name}"] = check_engine(name, **self.options)
            for one, other in product(found.get("--model", ()), found[f"{flag} {name}"]):
                if type(one) is type(other) and not one.shares_tokenizer(other):
                    raise MismatchError(
                        f"{name!r} and {names['--model']!r} have different tokenizers. Choose another model with {flag}."
                    )
        return [checked for group in found.values() for checked in group]

    def _check(self, option: str, name: str) -> list[Checked]:
        return (check_engine if option == "--model" else check_reward)(name, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options that all loaders accept, without those at their defaults."""
        given = {item.name: getattr(self, item.name) for item in fields(Placement) if getattr(self, item.name) != item.default}
        return {name: value for name, value in given.items() if name not in (*ON_TOP, "llama")} | self._llama

    @property
    def on_top(self) -> dict[str, Any]:
        """The options of `load_engine` for the chat template, the mixture and the draft, if there are any."""
        drafting = {name: getattr(self, name) for name in DRAFTING} if self.draft or self.skip_layers else {}
        template = {} if self.chat_template is None else {"chat_template": check_template(self.chat_template)}
        return drafting | template | ({} if self.mix is None else {"mix": self.mix})

    @property
    def record(self) -> dict[str, Any]:
        """The options that can change a response, for the headers of files."""
        return {"dtype": self.dtype, "context": self.context, **self._llama, **self.on_top}

    @property
    def _llama(self) -> dict[str, Any]:
        return {"llama": parse_options(self.llama)} if self.llama else {}

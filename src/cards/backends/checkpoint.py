"""Checkpoints of transformers models: everything that is known and checked before weights are read."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoHfQuantizer

from cards.backends.files import ADAPTER_WEIGHTS, WEIGHTS, Kind, ModelFolder, load_tokenizer, locate, tensor_names
from cards.backends.quiet import quiet
from cards.errors import CardsError, MissingExtraError, ModelError
from cards.fingerprint import fingerprint

AUTO = {"lm": "AutoModelForCausalLM", "rm": "AutoModelForSequenceClassification"}
HEADS = ("score", "classifier", "classification_head", "logits_proj", "sequence_summary", "v_head")
TEMPLATES = (".jinja", "chat_template.json")
ADAPTER_CONFIG = "adapter_config.json"
LAYER_ADAPTERS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "VBLORA", "MISS")
OTHER_MODELS = (  # their classes have siblings that load as causal LMs
    ("ForSequenceClassification", "sequence classifier. Use it as a reward"),
    ("ForMaskedLM", "masked LM. Choose a causal LM"),
    ("ForTokenClassification", "token classifier. Choose a causal LM"),
    ("ForQuestionAnswering", "model for question answering. Choose a causal LM"),
)
NO_HEAD = "has no trained score head. A reward model must be a trained sequence classifier."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be loaded, or an adapter of one: its configuration, its files and the class that loads it.

    adapter: the folder of an adapter (PEFT) for the model in `base`. trust: whether Python code of the model may run.
    """

    name: str
    kind: Kind
    base: ModelFolder
    config: PreTrainedConfig
    auto: Any
    trust: bool
    adapter: ModelFolder | None = None

    @classmethod
    def open(
        cls,
        name: str,
        kind: Kind,
        *,
        trust_remote_code: bool = False,
        token: str | None = None,
        found: ModelFolder | None = None,
    ) -> Checkpoint:
        """Find a model (unless it is `found` already) and check its configuration, its architecture and its tokenizer.

        Raises UnknownNameError, MissingExtraError, or ModelError with the reason why the model cannot be loaded.
        """
        base, adapter = found or locate(name, kind, token), None
        if ADAPTER_CONFIG in base.files:
            adapter, base = base, _base_of(base, kind, token)
        if "config.json" not in base.files:
            raise ModelError(f"Model {base.name!r} has no config.json. Give a model for transformers.")
        config = _config(name, base, trust_remote_code)
        auto = _auto_class(name, kind, config, trust_remote_code)
        base.json("tokenizer_config.json")
        if not (base.check_tokenizer() or (adapter is not None and adapter.check_tokenizer())):
            raise ModelError(f"Model {name!r} has no tokenizer: copy its tokenizer.json to {base.folder}.")
        return cls(name, kind, base, config, auto, trust_remote_code, adapter)

    @property
    def parts(self) -> list[tuple[ModelFolder, tuple[str, ...]]]:
        """The folders with weights, and the names that weight files have there."""
        adapter = [] if self.adapter is None else [(self.adapter, ADAPTER_WEIGHTS)]
        return [(self.base, WEIGHTS), *adapter]

    def weight_files(self) -> list[Path]:
        """Return the paths of the weight files. Raises ModelError if files are missing, truncated, or pointers of Git LFS."""
        return [folder.folder / file for folder, names in self.parts for file in folder.check_weights(names)]

    def check_weights(self) -> None:
        """Check that all weight files are there and whole, and that a reward model has a head. Weights are not read.

        Raises ModelError.
        """
        files = self.weight_files()
        architectures = self.config.architectures or ()
        if self.kind == "rm" and architectures and all(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
            names = tensor_names(files)  # an LM with an adapter may have a head
            if names is not None and not any(part in HEADS for name in names for part in name.split(".")):
                raise ModelError(f"Model {self.name!r} {NO_HEAD}")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, that of the adapter if it has one. Raises ModelError."""
        try:
            return load_tokenizer(self._tokenizer_folder, self.trust)
        except Exception as error:  # of transformers, tokenizers, sentencepiece or the model's own code
            raise ModelError(f"The tokenizer of {self.name!r} cannot be loaded: {brief(error)}") from error

    @property
    def _tokenizer_folder(self) -> ModelFolder:
        return self.adapter if self.adapter is not None and self.adapter.check_tokenizer() else self.base

    @property
    def chats(self) -> bool | None:
        """Whether the tokenizer has a chat template; None if its own code may bring one. Raises ModelError."""
        folder = self._tokenizer_folder
        settings = folder.json("tokenizer_config.json")
        if settings.get("chat_template") or any(file.endswith(TEMPLATES) for file in folder.files):
            return True
        return None if "auto_map" in settings else False

    def shares_tokenizer(self, other: Checkpoint) -> bool:
        """Return whether both models have the same tokenizer. It is loaded only if the files differ. Raises ModelError."""
        ours, theirs = self._tokenizer_folder.tokenizer_hash, other._tokenizer_folder.tokenizer_hash
        if ours is not None and ours == theirs:
            return True
        return fingerprint(self.tokenizer()) == fingerprint(other.tokenizer())

    def without_weights(self) -> PreTrainedModel:
        """Return the model without weights, for back ends that load the weights themselves. Raises ModelError."""
        if self.adapter is not None:
            raise ModelError(f"Model {self.name!r} is an adapter, which only transformers loads. Merge it into its base model.")
        try:
            with quiet(), torch.device("meta"):
                model = self.auto.from_config(self.config, trust_remote_code=self.trust)
        except Exception as error:
            raise ModelError(f"Model {self.name!r} cannot be loaded: {brief(error)}") from error
        with suppress(OSError):  # many models have no generation config
            model.generation_config = GenerationConfig.from_pretrained(self.base.folder)
        evaluated: PreTrainedModel = model.eval()
        return evaluated

    def fetch(self) -> None:
        """Download the weights that are not on this machine. Raises ModelError."""
        for folder, names in self.parts:
            folder.fetch_weights(folder.check_weights(names))

    def check_quantization(self) -> None:
        """Raise ModelError if the packages or the device for quantised weights are missing."""
        settings = getattr(self.config, "quantization_config", None)
        if settings is None:
            return
        try:
            with quiet():
                quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
                quantizer.validate_environment(device_map=None, weights_only=True)
        except Exception as error:
            kind = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
            raise ModelError(f"Model {self.name!r} has {kind} weights, which cannot be loaded here: {brief(error)}") from error


def brief(error: BaseException) -> str:
    """Return the first line of the message of a dependency's error, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _base_of(adapter: ModelFolder, kind: Kind, token: str | None) -> ModelFolder:
    """Return the base model of an adapter: the model in the same folder, or the one that its configuration names."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(f"Model {adapter.name!r} is an adapter, which needs peft", "peft")
    settings = adapter.json(ADAPTER_CONFIG)
    if settings.get("peft_type") not in LAYER_ADAPTERS:
        raise ModelError(
            f"Adapter {adapter.name!r} is of type {settings.get('peft_type')}, which is not supported. Use one that changes "
            f"layers: {', '.join(LAYER_ADAPTERS)}."
        )
    if kind == "lm" and settings.get("task_type") == "SEQ_CLS":
        raise ModelError(f"Adapter {adapter.name!r} makes a reward model of its base model. Use it as a reward.")
    if "config.json" in adapter.files:
        return adapter
    name = settings.get("base_model_name_or_path")
    if not name:
        raise ModelError(
            f"Adapter {adapter.name!r} does not name its base model: set base_model_name_or_path in {ADAPTER_CONFIG}."
        )
    try:
        return locate(name, kind, token)
    except CardsError as error:
        raise ModelError(f"The base model {name!r} of adapter {adapter.name!r} cannot be loaded: {error}") from error


def _config(name: str, base: ModelFolder, trust: bool) -> PreTrainedConfig:
    settings = base.json("config.json")
    kind = settings.get("model_type")
    if (
        "auto_map" in settings
        and "AutoConfig" in settings["auto_map"]
        and kind not in transformers.CONFIG_MAPPING
        and not trust
    ):
        raise _untrusted(name, f"is of type {kind!r}, which")
    try:
        with quiet():
            return cast(PreTrainedConfig, AutoConfig.from_pretrained(base.folder, trust_remote_code=trust))
    except Exception as error:
        if kind is not None and kind not in transformers.CONFIG_MAPPING and not trust:
            raise ModelError(
                f"Model {name!r} is of type {kind!r}, which transformers {transformers.__version__} does not know. A newer "
                "version may."
            ) from error
        raise ModelError(f"The configuration of {name!r} cannot be read: {brief(error)}") from error


def _untrusted(name: str, what: str) -> ModelError:
    return ModelError(
        f"Model {name!r} {what} needs Python code that comes with the model. Read the code, and then allow it with "
        "trust_remote_code (--trust-remote-code)."
    )


def _auto_class(name: str, kind: Kind, config: PreTrainedConfig, trust: bool) -> Any:
    """Return the class that loads the model. Raises ModelError if there is none for this kind of model."""
    own: dict[str, str] = getattr(config, "auto_map", None) or {}
    architecture = next(iter(config.architectures or ()), None)
    wanted = AUTO[kind]
    for auto in (wanted, "AutoModel") if kind == "rm" else (wanted,):
        if auto in own and (auto == wanted or own[auto].endswith(f".{architecture}")):
            if trust:
                return getattr(transformers, auto)
            if architecture is None or not hasattr(transformers, architecture):
                raise _untrusted(name, f"is a {architecture}, which")
    if kind == "lm" and (other := next((what for end, what in OTHER_MODELS if (architecture or "").endswith(end)), None)):
        raise ModelError(f"Model {name!r} ({architecture}) cannot be a language model: it is a {other}.")
    found: Any = getattr(transformers, wanted)
    if type(config) not in found._model_mapping:
        role = "a language model" if kind == "lm" else "a reward model"
        raise ModelError(
            f"Model {name!r} ({architecture or config.model_type}) cannot be {role}: transformers has no {wanted} for it. "
            + ("Choose a causal LM." if kind == "lm" else "Choose a sequence classifier.")
        )
    if kind == "lm" and config.is_encoder_decoder:
        raise ModelError(f"Model {name!r} ({architecture}) cannot be a language model: it has an encoder. Choose a causal LM.")
    return found

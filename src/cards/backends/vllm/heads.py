"""Reward models that vLLM scores as their own forward pass does, decided from the class and the configuration alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from cards.backends.checkpoint import NO_HEAD, Checkpoint
from cards.errors import ModelError, SettingError

OWN_HEADS = tuple(  # vLLM has classes for these, whose heads were compared with those of transformers
    f"{family}ForSequenceClassification" for family in ("Bert", "GPT2", "Jamba", "ModernBert", "Roberta", "XLMRoberta")
)
FIXED_OPTIONS = ("convert", "hf_overrides", "pooler_config")  # options of vLLM that change what it computes
CONVERTED = ("classifier_from_token", "method")  # settings for heads that vLLM makes from the LM head


def check_head(checkpoint: Checkpoint, model: PreTrainedModel, known: Collection[str]) -> None:
    """Raise ModelError with the reason unless vLLM computes the outputs of the model's own forward pass.

    That holds for decoders whose class applies one layer `score` to the last hidden state, and for `OWN_HEADS`.
    known: the architectures in vLLM's registry.
    """
    name = checkpoint.name
    if all(architecture.endswith(("ForCausalLM", "LMHeadModel")) for architecture in checkpoint.config.architectures or ()):
        raise ModelError(f"Model {name!r} {NO_HEAD}")
    problem = _problem(checkpoint.config, model, known)
    if problem is None and "modules.json" in checkpoint.base.files:
        problem = "its modules.json (of sentence-transformers) changes what vLLM computes"
    if problem is not None:
        raise ModelError(f"vLLM may not score {name!r} as the model itself does: {problem}. Load it without vllm:.")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise SettingError if an option of vLLM would change the outputs of a reward model."""
    for option in FIXED_OPTIONS:
        if option in options:
            raise SettingError(f"{option} cannot be set for a reward in vLLM, because it changes the scores. Leave it out.")


def _problem(config: PreTrainedConfig, model: PreTrainedModel, known: Collection[str]) -> str | None:
    """Return why vLLM may compute other outputs than the model, or None."""
    cls = type(model)
    kind = cls.__name__
    own: dict[str, str] = getattr(config, "auto_map", None) or {}
    if not cls.__module__.startswith("transformers.") or any(auto.startswith("AutoModel") for auto in own):
        return "it comes with its own Python code"
    if list(config.architectures or ()) != [kind]:
        return f"its architecture is {', '.join(config.architectures or ())}, not {kind}"
    if converted := [setting for setting in CONVERTED if getattr(config, setting, None) is not None]:
        return f"its configuration has {converted[0]}, from which vLLM makes another head"
    if kind in OWN_HEADS:
        if kind not in known:
            return f"this version of vLLM has no {kind}"
        if getattr(config, "is_decoder", False) or getattr(config, "classifier_activation", "gelu") != "gelu":
            return f"its configuration changes {kind} in a way that vLLM does not read"
        return None
    if not issubclass(cls, GenericForSequenceClassification) or cls.forward is not GenericForSequenceClassification.forward:
        return f"{kind} does more than apply one layer to the last hidden state"
    causal = kind.replace("ForSequenceClassification", "ForCausalLM")
    if kind not in known and causal not in known:
        return f"this version of vLLM has no {causal}"
    text = config.get_text_config()
    if not getattr(text, "is_causal", True) or getattr(text, "use_bidirectional_attention", None):
        return "its attention is not causal"
    return None

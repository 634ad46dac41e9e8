"""The generation config of a model: excluded tokens, the repetition penalty, and a warning about settings without effect."""

from __future__ import annotations

import logging
from collections.abc import Collection

from transformers import PreTrainedModel

from cards.backends.configuration import vocab_size
from cards.engines.exclusions import Exclusions

log = logging.getLogger("cards")
# Parameters that change which tokens `generate` writes, with the value that switches each off. The settings of the method
# replace do_sample, temperature, top_k and top_p, and `max_tokens` replaces the maximum lengths.
IGNORED = {
    "no_repeat_ngram_size": 0,
    "sequence_bias": None,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,  # `generate` writes it after a prompt of one token
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "watermarking_config": None,
    "stop_strings": None,
}
EXCLUDING = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_warned: set[str] = set()


def exclusions(model: PreTrainedModel, end_ids: Collection[int]) -> Exclusions:
    """Return the tokens that the generation config excludes, with the meaning that they have for `generate`."""
    config, size = model.generation_config, vocab_size(model)
    suppressed, at_first, words = (getattr(config, name, None) or [] for name in EXCLUDING)
    words = [tuple(word) for word in words if not (len(word) == 1 and word[0] in end_ids)]
    always = {*suppressed, *(word[0] for word in words if len(word) == 1)}
    return Exclusions(
        tuple(sorted(token for token in always if 0 <= token < size)),
        tuple(sorted(token for token in at_first if 0 <= token < size)),
        tuple(word for word in words if len(word) > 1 and all(0 <= token < size for token in word)),
    )


def repetition_penalty(model: PreTrainedModel) -> float:
    """Return the penalty for tokens of the prompt and the response that requests get if they set none; 1 is off."""
    penalty = getattr(model.generation_config, "repetition_penalty", None)
    return 1.0 if penalty is None or penalty <= 0 else float(penalty)


def warn_of_ignored(model: PreTrainedModel, name: str, also: Collection[str] = ()) -> None:
    """Warn, once for each model, of what its generation config asks for in vain. `also` names further parameters."""
    wanted = {key: getattr(model.generation_config, key, None) for key in (*IGNORED, *also)}
    ignored = [f"{key}={value}" for key, value in wanted.items() if value not in (None, IGNORED.get(key), [])]
    if ignored and name not in _warned:
        _warned.add(name)
        log.warning("The generation config of model %r has %s, which cards does not apply.", name, ", ".join(ignored))

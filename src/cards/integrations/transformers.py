"""A `custom_generate` for transformers, so that `model.generate(...)` decodes with any method of this package."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from cards.backends.configuration import length_limit
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.decoder import Decoder
from cards.engines.text import check_fits
from cards.errors import ModelError, check
from cards.events import Accepted, Done, Fallback, Prompt, Result
from cards.fingerprint import Fingerprint
from cards.methods.base import Method
from cards.registry import load_reward, make_method, with_models
from cards.rewards.base import Reward
from cards.rewards.function import Scorer
from cards.settings import settings_of
from cards.shaping import Shaping

RewardModel = str | Reward | Scorer | tuple[PreTrainedModel, PreTrainedTokenizerBase]
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # defaults of transformers
WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
CRITERIA = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class GenerateOutput(GenerateDecoderOnlyOutput):
    """The output for `return_dict_in_generate=True`: `sequences`, and a Result for each (reward, segments, usage)."""

    results: tuple[Result, ...] | None = None


def custom_generate(
    reward: RewardModel | None = None,
    method: str | Method = "cards",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: BaseStreamer | None = None,
    slots: int = 16,
    context: int | None = None,
) -> CustomGenerate:
    """Return a value for the argument `custom_generate` of `generate`, which then returns the responses of `method`.

    - reward: a Reward, a name, a function of (prompt, response), or a pair (sequence classifier, its tokenizer).
    - tokenizer: that of the model. The default is the one saved with it.
    - streamer: passed here because transformers does not pass its own on.
    - slots, context: keys and values of slots x context tokens stay with the model between calls. With context None, the
      size follows the calls.
    """
    if isinstance(reward, tuple):
        reward = ClassifierReward(*reward)
    elif isinstance(reward, str):
        reward = load_reward(reward)
    method = make_method(method) if isinstance(method, str) else method
    return CustomGenerate(reward, method, tokenizer, streamer, slots, context)


@dataclass
class CustomGenerate:
    """The callable that `generate` calls. transformers passes on the call arguments that are parameters of `__call__`."""

    reward: Reward | Scorer | None
    method: Method
    tokenizer: PreTrainedTokenizerBase | None
    streamer: Any
    slots: int
    context: int | None
    _methods: dict[Fingerprint | str, Method] = field(default_factory=dict)  # the method with its models loaded, by vocabulary

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        *,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        seed: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_beams: int | None = None,
        num_return_sequences: int | None = None,
        stop_strings: str | list[str] | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateOutput:
        check(
            model_kwargs.get("inputs_embeds") is None,
            "custom_generate needs input_ids, got inputs_embeds. Rewards read text, which embeddings do not have.",
        )
        config = generation_config
        mask = model_kwargs.get("attention_mask")
        expanded = max(config.num_beams or 1, config.num_return_sequences or 1)  # generate has repeated each prompt this often
        copies = num_return_sequences or config.num_return_sequences or 1
        rows = [i for i in range(0, len(input_ids), expanded) for _ in range(copies)]
        given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampling = {n: value for n, v in given.items() if (value := _explicit_value(n, v, config, model)) is not None}
        if sampling.get("top_k") == 0:
            sampling["top_k"] = None
        if do_sample is False:
            sampling = {"temperature": 0.0}
        known = settings_of(self.method)
        repeats = [
            p for p in logits_processor if isinstance(p, RepetitionPenaltyLogitsProcessor) and p.prompt_ignore_length is None
        ]
        _warn_ignored(
            [name for name in sampling if name not in known]
            + ["num_beams"] * ((num_beams or config.num_beams or 1) > 1)
            + [name for name in OUTPUTS if getattr(config, name, None)]
            + [type(p).__name__ for p in logits_processor if not (isinstance(p, WARPERS) or p in repeats)]
            + [type(c).__name__ for c in stopping_criteria if not isinstance(c, CRITERIA)],
            self.method,
        )
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
        for criterion in stopping_criteria:
            stops += criterion.stop_strings if isinstance(criterion, StopStringCriteria) else ()
        length = min(c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria))
        with borrowed_engine(model, self.tokenizer, self.slots, self.context, length) as engine:
            if ends := [c.eos_token_id for c in stopping_criteria if isinstance(c, EosTokenCriteria)]:
                engine.end_ids = frozenset(torch.cat([ids.flatten() for ids in ends]).tolist())
            if engine.vocabulary not in self._methods:
                self._methods[engine.vocabulary] = with_models(self.method, engine)
            method = self._methods[engine.vocabulary]
            method = replace(method, **{n: v for n, v in sampling.items() if n in known})  # type: ignore[type-var]
            results = self._results(
                Decoder(engine, self.reward, method),
                [_prompt(engine, input_ids[i], None if mask is None else mask[i]) for i in rows],
                seed=int(torch.randint(2**31, ())) if seed is None else seed,
                max_tokens=length - input_ids.shape[1],
                stop=stops,
                shaping=Shaping(repetition_penalty=math.prod(p.penalty for p in repeats)),
                deadline=min((c.max_time for c in stopping_criteria if isinstance(c, MaxTimeCriteria)), default=None),
            )
            padding = next(iter(engine.end_ids), 0) if config.pad_token_id is None else config.pad_token_id
        sequences: Any = _padded(input_ids[rows], results, padding)
        return GenerateOutput(sequences, results=tuple(results)) if config.return_dict_in_generate else sequences

    def _results(self, decoder: Decoder, prompts: Sequence[Prompt], **options: Any) -> list[Result]:
        if self.streamer is None:
            return decoder.batch(prompts, concurrency=len(prompts), progress=False, **options)
        check(len(prompts) == 1, f"A streamer needs a single response, got {len(prompts)}.")
        self.streamer.put(torch.tensor(prompts[0].token_ids))
        results = []
        for event in decoder.stream(prompts[0], **options):
            if isinstance(event, Accepted | Fallback) and event.segment.token_ids:
                self.streamer.put(torch.tensor(event.segment.token_ids))
            elif isinstance(event, Done):
                results.append(event.result)
        self.streamer.end()
        return results


class EngineHolder:
    """The engine kept with a model. Copies and saved files of the model get an empty holder."""

    def __init__(self) -> None:
        self.engine: TransformersEngine | None = None
        self.weights: Any = None
        self.lock = threading.RLock()

    def __reduce__(self) -> Any:  # for copies and files
        return EngineHolder, ()


@contextmanager
def borrowed_engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, slots: int, context: int | None, length: int
) -> Iterator[TransformersEngine]:
    """Yield an engine on the model with a context of at least `length` tokens, then restore the state of the model.

    Concurrent calls wait for each other.
    """
    holder = cast(EngineHolder, model.__dict__.setdefault("_cards_engine", EngineHolder()))
    with holder.lock:
        training = [m for m in model.modules() if m.training]
        engine = holder.engine
        tokenizer = tokenizer or (engine.tokenizer if engine else _saved_tokenizer(model))
        try:
            if (
                engine is None
                or engine.tokenizer is not tokenizer
                or engine.rows != slots
                or engine.context < (context or min(length, length_limit(model)))
                or holder.weights != _state(model)
            ):
                for module in model.modules():
                    module.__dict__.pop("_cards_joined", None)  # joined copies of weights that may have changed
                wanted = context or min(1 << max(7, (length - 1).bit_length()), length_limit(model))
                engine = holder.engine = TransformersEngine(model, tokenizer, slots=slots, context=wanted)
                holder.weights = _state(model)
            else:
                model.train(False)
                engine.forget()  # other code may have changed the model without changing its weights
            yield copy(engine)
        finally:
            for module in training:
                module.training = True


def _state(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return the address and the version counter of each weight tensor."""
    return [(p.data_ptr(), p._version) for p in model.parameters()]


def _saved_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model.name_or_path))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No tokenizer is saved with the model {model.name_or_path or type(model).__name__!r}. Pass tokenizer=... to "
            "custom_generate."
        ) from error


def _explicit_value(name: str, argument: Any, config: GenerationConfig, model: PreTrainedModel) -> Any:
    """Return the value set by the caller as an argument or in a generation config, or None if it is a default."""
    value = getattr(config, name)
    own = getattr(model.generation_config, name, None)
    return argument if argument is not None else None if value in (own, SAMPLING_DEFAULTS[name]) else value


def _warn_ignored(ignored: Sequence[str], method: Method) -> None:
    if ignored:
        names = ", ".join(dict.fromkeys(ignored))
        warnings.warn(f"custom_generate ignores arguments that method {method.name!r} does not support: {names}.", stacklevel=4)


def _prompt(engine: TransformersEngine, row: Tensor, mask: Tensor | None) -> Prompt:
    ids = tuple(cast("list[int]", (row if mask is None else row[mask.bool()]).tolist()))
    check(bool(ids), "Each row of input_ids must have tokens besides padding, got a row without any.")
    text = cast(str, engine.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    text = text.removeprefix(cast(str, engine.tokenizer.bos_token) or "")
    template = cast("str | None", engine.tokenizer.chat_template)
    return check_fits(Prompt(text, ids, None, engine.vocabulary, template), engine.name, engine.context, engine.vocab_size)


def _padded(prompts: Tensor, results: Sequence[Result], padding: int) -> Tensor:
    """Return prompts [rows, n] and their responses as one tensor, [rows, n + length of the longest response]."""
    responses = [torch.tensor(result.token_ids, dtype=prompts.dtype, device=prompts.device) for result in results]
    return torch.cat([prompts, torch.nn.utils.rnn.pad_sequence(responses, batch_first=True, padding_value=padding)], 1)

"""transformers' own call, `model.generate(..., custom_generate=...)`, with any method of this package behind it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessorList,
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

from cards.backends.local.attention import NAME
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.decoder import Decoder
from cards.errors import ModelError, PromptError, SettingError, check
from cards.events import Accepted, Done, Fallback, Prompt, Result
from cards.fingerprint import Fingerprint
from cards.methods.base import Method
from cards.registry import load_reward, make_method, with_models
from cards.rewards.base import Reward
from cards.settings import settings_of

RewardModel = str | Reward | Callable[[str, str], float] | tuple[PreTrainedModel, PreTrainedTokenizerBase]
UNSET = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # what transformers fills in where nothing is said
WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
CRITERIA = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@dataclass
class Output(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` gives: `sequences`, and the Result (reward, segments, cost) of each."""

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
    """A value for `custom_generate`: the answers of `method`, guided by `reward`, in the form that `generate` gives.

    reward: a Reward, a name, a function of (prompt, response), or a pair (sequence classifier, its tokenizer). tokenizer: the
    model's (default: what is saved with it). streamer: here, for transformers hands none on. slots x context tokens of
    keys and values are kept with the model between calls (context None: as many as the calls need).
    """
    if isinstance(reward, tuple):
        reward = ClassifierReward(*reward)
    elif isinstance(reward, str):
        reward = load_reward(reward)
    method = make_method(method) if isinstance(method, str) else method
    return CustomGenerate(reward, method, tokenizer, streamer, slots, context)


@dataclass
class CustomGenerate:
    """Called by `generate`. Arguments of the call that are parameters here reach it; transformers reads the others."""

    reward: Reward | Callable[[str, str], float] | None
    method: Method
    tokenizer: PreTrainedTokenizerBase | None
    streamer: Any
    slots: int
    context: int | None
    _methods: dict[Fingerprint | str, Method] = field(default_factory=dict)  # with loaded models, by tokenizer

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
    ) -> Tensor | Output:
        check(
            model_kwargs.get("inputs_embeds") is None,
            "custom_generate needs input_ids: rewards read text, which inputs_embeds have not.",
        )
        config = generation_config
        mask = model_kwargs.get("attention_mask")
        expanded = max(config.num_beams or 1, config.num_return_sequences or 1)  # times that generate repeats each prompt
        copies = num_return_sequences or config.num_return_sequences or 1
        rows = [i for i in range(0, len(input_ids), expanded) for _ in range(copies)]
        given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        sampling = {n: value for n, v in given.items() if (value := _given(n, v, config, model)) is not None}
        if sampling.get("top_k") == 0:
            sampling["top_k"] = None
        if do_sample is False:
            sampling = {"temperature": 0.0}
        known = settings_of(self.method)
        _warn_of(
            [name for name in sampling if name not in known]
            + ["num_beams"] * ((num_beams or config.num_beams or 1) > 1)
            + [name for name in OUTPUTS if getattr(config, name, None)]
            + [type(p).__name__ for p in logits_processor if not isinstance(p, WARPERS)]
            + [type(c).__name__ for c in stopping_criteria if not isinstance(c, CRITERIA)],
            self.method,
        )
        stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())
        for criterion in stopping_criteria:
            stops += criterion.stop_strings if isinstance(criterion, StopStringCriteria) else ()
        length = min(c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria))
        with lent(model, self.tokenizer, self.slots, self.context, length) as engine:
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
                deadline=min((c.max_time for c in stopping_criteria if isinstance(c, MaxTimeCriteria)), default=None),
            )
            padding = next(iter(engine.end_ids), 0) if config.pad_token_id is None else config.pad_token_id
        sequences: Any = _padded(input_ids[rows], results, padding)
        return Output(sequences, results=tuple(results)) if config.return_dict_in_generate else sequences

    def _results(self, decoder: Decoder, prompts: Sequence[Prompt], **options: Any) -> list[Result]:
        if self.streamer is None:
            return decoder.batch(prompts, concurrency=len(prompts), progress=False, **options)
        check(len(prompts) == 1, f"A streamer takes one answer, not {len(prompts)}.")
        self.streamer.put(torch.tensor(prompts[0].token_ids))
        results = []
        for event in decoder.stream(prompts[0], **options):
            if isinstance(event, Accepted | Fallback) and event.segment.token_ids:
                self.streamer.put(torch.tensor(event.segment.token_ids))
            elif isinstance(event, Done):
                results.append(event.result)
        self.streamer.end()
        return results


class Kept:
    """The engine of a model, which goes where the model goes, except into copies and files."""

    def __init__(self) -> None:
        self.engine: TransformersEngine | None = None
        self.weights: Any = None
        self.lock = threading.RLock()

    def __deepcopy__(self, memo: Any) -> Kept:
        return Kept()

    def __reduce__(self) -> Any:
        return Kept, ()


@contextmanager
def lent(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, slots: int, context: int | None, length: int
) -> Iterator[TransformersEngine]:
    """An engine on the model for `length` tokens a row; afterwards the model is as it was. One call at a time has it."""
    kept = cast(Kept, model.__dict__.setdefault("_cards_kept", Kept()))
    with kept.lock:
        attention, training = model.config._attn_implementation, [m for m in model.modules() if m.training]
        engine = kept.engine
        tokenizer = tokenizer or (engine.tokenizer if engine else _saved_tokenizer(model))
        try:
            if (
                engine is None
                or engine.tokenizer is not tokenizer
                or engine.rows != slots
                or engine.context < (context or min(length, _most(model)))
                or kept.weights != _state(model)
            ):
                for module in model.modules():
                    module.__dict__.pop("_cards_joined", None)  # of weights that may have moved
                wanted = context or min(1 << max(7, (length - 1).bit_length()), _most(model))
                engine = kept.engine = TransformersEngine(model, tokenizer, slots=slots, context=wanted)
                kept.weights = _state(model)
            else:
                model.train(False)
                model.set_attn_implementation(NAME)
                engine.forget()  # what code outside did to the model may not show in its weights
            yield copy(engine)
        finally:
            model.set_attn_implementation(attention)
            for module in training:
                module.training = True


def _state(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Where the weights are and how often they were written to."""
    return [(p.data_ptr(), p._version) for p in model.parameters()]


def _most(model: PreTrainedModel) -> int:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048


def _saved_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model.name_or_path))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"No tokenizer is saved with the model {model.name_or_path or type(model).__name__!r}: give custom_generate its "
            "tokenizer=..."
        ) from error


def _given(name: str, argument: Any, config: GenerationConfig, model: PreTrainedModel) -> Any:
    """The value that the caller gave, as an argument or in a generation config; None if it is only a default."""
    value = getattr(config, name)
    own = getattr(model.generation_config, name, None)
    return argument if argument is not None else None if value in (own, UNSET[name]) else value


def _warn_of(ignored: Sequence[str], method: Method) -> None:
    if ignored:
        names = ", ".join(dict.fromkeys(ignored))
        warnings.warn(f"custom_generate leaves out what method {method.name!r} cannot do: {names}.", stacklevel=4)


def _prompt(engine: TransformersEngine, row: Tensor, mask: Tensor | None) -> Prompt:
    ids = tuple(cast("list[int]", (row if mask is None else row[mask.bool()]).tolist()))
    if len(ids) >= engine.context:
        raise PromptError(f"A prompt has {len(ids)} tokens, and the context is {engine.context} with the answer.")
    if not ids:
        raise SettingError("A row of input_ids has no tokens outside its padding: there is nothing to answer.")
    text = cast(str, engine.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    text = text.removeprefix(cast(str, engine.tokenizer.bos_token) or "")
    template = cast("str | None", engine.tokenizer.chat_template)
    return Prompt(text, ids, vocabulary=engine.vocabulary, template=template)


def _padded(prompts: Tensor, results: Sequence[Result], padding: int) -> Tensor:
    """Prompts [rows, n] and their answers as one tensor, [rows, n + the longest answer]."""
    answers = [torch.tensor(result.token_ids, dtype=prompts.dtype, device=prompts.device) for result in results]
    return torch.cat([prompts, torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)], 1)

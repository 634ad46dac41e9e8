"""Scoring of texts by reward models: causal models in cache slots, other models in batches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cards.backends.configuration import flops_per_token, vocab_size
from cards.backends.forms import MARK, TypedRow
from cards.backends.local.attention import SlotAttention
from cards.backends.local.cache import explain_error
from cards.backends.local.lean import lean_forward
from cards.backends.local.memory import CacheSize
from cards.backends.local.proof import DUMMY_MASK, Proof, longest_text, verified_slots
from cards.backends.local.structure import obstacle
from cards.engines.scoring import Combine, SlotScorer, TextRow, TextScorer
from cards.errors import ModelError

REPEATED = 1e-4  # largest relative difference between two runs of the same text
Layout = Literal["padded", "equal", "head", "single"]


class CausalScorer(SlotScorer):
    """A scorer for causal RMs in cache slots."""

    def __init__(self, proof: Proof, combine: Combine, size: CacheSize, context: int) -> None:
        model = proof.model
        mask, attention = DUMMY_MASK.to(model.device), SlotAttention(model)
        head = cast("torch.nn.Module", model.score)

        def output(input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
            with attention:
                hidden = model.base_model(
                    input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
                ).last_hidden_state
            return cast(Tensor, head(hidden[0, last]))

        slots = verified_slots(proof, (lean_forward(model, head, context), output), size)
        self.length = slots.length
        super().__init__(slots, combine)


class LayoutScorer(TextScorer):
    """A scorer for complete texts, which forms batches by `layout` and runs the model's own forward pass.

    `padded` pads texts on the right, `equal` batches texts of equal length, `single` reads one text at a time. `head` does
    the same as `equal` for causal models, whose forward pass would look for padding.
    """

    def __init__(self, model: PreTrainedModel, combine: Combine, pad_id: int | None, layout: Layout) -> None:
        super().__init__(model.device, combine, flops_per_token(model))
        self.model, self.layout, self.pad_id = model, layout, pad_id or 0

    def translate_error(self, error: Exception) -> Exception:
        return explain_error(error, self.model.device)

    def _batch(self, texts: Sequence[TextRow]) -> Sequence[TextRow]:
        if self.layout == "single":
            return texts[:1]
        return super()._batch(
            texts if self.layout == "padded" else [text for text in texts if len(text.tokens) == len(texts[0].tokens)]
        )

    @torch.inference_mode()
    def _outputs(self, rows: Sequence[list[int]]) -> Tensor:
        return forward(self.model, rows, self.pad_id, self.layout)


def forward(model: PreTrainedModel, texts: Sequence[list[int]], pad_id: int, layout: Layout) -> Tensor:
    """Return the outputs [texts, labels] of a classifier."""
    rows = [torch.tensor(text, dtype=torch.long) for text in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id).to(model.device)
    if layout == "head":
        head = cast(torch.nn.Module, model.score)
        return cast(Tensor, head(model.base_model(input_ids=ids).last_hidden_state[:, -1]))
    known = inspect.signature(model.forward).parameters
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    inputs = {"attention_mask": mask.to(model.device)} if "attention_mask" in known else {}
    if (getattr(model.config, "type_vocab_size", None) or 0) > 1 and "token_type_ids" in known:
        inputs["token_type_ids"] = _token_types(texts).to(model.device)
    with last_token_read(model, len(texts)):
        logits = cast(Tensor, model(input_ids=ids, **inputs).logits)
    return logits.unsqueeze(-1) if logits.dim() == 1 else logits  # some models return one number for each text


@contextmanager
def last_token_read(model: PreTrainedModel, texts: int) -> Iterator[None]:
    """Make a causal classifier read the last token of a single text, even if it is the padding token."""
    config = model.config.get_text_config()
    pad_id = getattr(config, "pad_token_id", None)
    if texts == 1 and is_causal(model):
        config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = pad_id


@torch.inference_mode()
def exact_layout(proof: Proof, pad_id: int) -> Layout:
    """Return the fastest layout whose outputs for the texts together equal those of each text alone.

    Encoders in half precision are compared in float32, because padding can change outputs by less than rounding does.
    """
    if not is_causal(proof.model) and proof.model.dtype != torch.float32:
        try:
            proof = Proof(copy.deepcopy(proof.model).float(), proof.reference, proof.texts)
        except torch.OutOfMemoryError:
            return "single"
    layouts: list[Layout] = ["head"] if is_causal(proof.model) else ["padded", "equal"]
    for layout in layouts:
        with suppress(ModelError):
            proof.check(f"does not score {layout} batches", _together(proof, pad_id, layout))
            return layout
    return "single"


def _together(proof: Proof, pad_id: int, layout: Layout) -> Iterator[Tensor]:
    """Yield the outputs of each text in a batch with others."""
    texts = [ids[0].tolist() for ids in proof.texts]
    for text in texts:
        batch = texts if layout == "padded" else [other for other in texts if len(other) == len(text)]
        yield forward(proof.model, batch, pad_id, layout)[batch.index(text)].unsqueeze(0)


@torch.inference_mode()
def rm_proof(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, name: str) -> Proof:
    """Return the proof of a classifier from the outputs of its own forward pass for texts of up to `context` tokens.

    Raises ModelError if the model does not return one row of outputs, the same each time.
    """

    def reference(model: PreTrainedModel, ids: Tensor) -> Tensor:
        return forward(model, ids.tolist(), 0, "single")

    def proof_of(texts: Sequence[list[int]]) -> Proof:
        return Proof(model, reference, [torch.tensor([text], device=model.device) for text in texts], problem)

    problem, window = obstacle(model, context) if is_causal(model) else (None, 0)
    try:
        proof = proof_of(probes(model, tokenizer, context, window))
    except ModelError:  # some models look for a token of their chat template, as ArmoRM does
        if not (dialogues := dialogue_probes(model, tokenizer, context, window)):
            raise
        proof = proof_of(dialogues)
    shape = tuple(proof.expected[0].shape[1:])
    if shape != (model.config.num_labels,):
        raise ModelError(
            f"Reward {name!r} returns outputs of shape {shape} for a text, but its configuration has "
            f"{model.config.num_labels} labels. Call the model in a function of your own (--reward file.py:function)."
        )
    if not proof.error([reference(model, proof.texts[0]), *proof.expected[1:]]) <= max(
        REPEATED, 4 * torch.finfo(model.dtype).eps
    ):
        raise ModelError(f"Reward {name!r} returns different outputs for the same text. Use another reward model.")
    return proof


def probes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, window: int) -> list[list[int]]:
    """Return random texts of several lengths, with the tokens that the tokenizer writes around a text.

    window: the longest text exceeds it, if that is affordable. Encoder-decoder models score the end token, so their texts
    have one.
    """
    bare, whole = (cast("list[int]", tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    before = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    start, end = whole[:before], whole[before + len(bare) :]
    if model.config.is_encoder_decoder and model.config.eos_token_id not in end:
        end = [*end, model.config.eos_token_id]
    contents = _random_contents(model, tokenizer, context - len(start) - len(end), window)
    return [[*start, *content, *end] for content in contents]


def dialogue_probes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: int, window: int
) -> list[list[int]] | None:
    """Return texts as `probes` does, in which random messages have the tokens of the chat template around them.

    Return None if there is no chat template, or it does not write a question and its response once each.
    """
    if tokenizer.chat_template is None:
        return None
    try:
        turns = [{"role": role, "content": MARK} for role in ("user", "assistant")]
        parts = cast(str, tokenizer.apply_chat_template(turns, tokenize=False)).split(MARK)
    except Exception:  # templates raise errors of many kinds
        return None
    if len(parts) != 3:
        return None
    start, middle, end = (cast("list[int]", tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
    contents = _random_contents(model, tokenizer, context - len(start) - len(middle) - len(end), window)
    return [[*start, *ids[: len(ids) // 2], *middle, *ids[len(ids) // 2 :], *end] for ids in contents]


def _random_contents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int, window: int
) -> Iterator[list[int]]:
    """Yield random tokens that are not special, of several lengths up to `longest`."""
    special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
    known = min(vocab_size(model), len(tokenizer))
    choice = torch.tensor([i for i in range(known) if i not in special] or [0])
    random = torch.Generator().manual_seed(0)
    for length in (5, 9, 9, longest_text(window)):
        yield choice[torch.randint(len(choice), (min(length, max(longest, 1)),), generator=random)].tolist()


def _token_types(texts: Sequence[list[int]]) -> Tensor:
    """Return the token types [texts, tokens]: those of text pairs, and 0 for other texts."""
    types = [text.types if isinstance(text, TypedRow) else [0] * len(text) for text in texts]
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in types], batch_first=True)


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether a classifier is a decoder. Decoders have a head called `score`, encoders have a `classifier`."""
    return isinstance(getattr(model, "score", None), torch.nn.Module) and not model.config.is_encoder_decoder

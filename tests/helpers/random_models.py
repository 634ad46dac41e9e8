"""Very small models with random weights, and tokenizers made on the spot."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward

WORDS = 80
END = 1  # the id that ends an answer
CONTEXT = 128


def word_tokenizer(words: int = WORDS) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose vocabulary is `<unk> </s> w2 w3 ...`: each word is one token."""
    vocabulary = {"<unk>": 0, "</s>": END} | {f"w{i}": i for i in range(2, words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, so that non-ASCII characters are split; the last id ends a response."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def language_model(
    kind: str, *, vocabulary: int = WORDS, end: int = END, seed: int = 0, spread: float = 2.0
) -> PreTrainedModel:
    """A random LM; `spread` scales the logits, so that some next tokens are sure and others are not."""
    torch.manual_seed(seed)
    ends: dict[str, Any] = {"eos_token_id": end, "bos_token_id": None}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **ends)
        model: PreTrainedModel = GPT2LMHeadModel(config)
    else:
        model = LlamaForCausalLM(_llama(vocabulary, **ends))
    return _shaken(model, spread)


def reward_model(kind: str, *, vocabulary: int = WORDS, seed: int = 1, labels: int = 1, spread: float = 1.0) -> PreTrainedModel:
    torch.manual_seed(seed)
    more: dict[str, Any] = {"num_labels": labels, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **more)
        model: PreTrainedModel = GPT2ForSequenceClassification(config)
    else:
        model = LlamaForSequenceClassification(_llama(vocabulary, **more))
    return _shaken(model, spread)


def _llama(vocabulary: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **more,
    )


def _shaken(model: PreTrainedModel, spread: float) -> PreTrainedModel:
    """Enlarge the initial weights, so that every token of the context matters; the head sets the spread."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                scale = 1.0 if "embed" in name or "wte" in name or "wpe" in name else weight.shape[-1] ** -0.5
                weight.normal_(0.0, scale)
        head: Any = model.get_output_embeddings()
        if head is None:
            score: Any = model.score
            score.weight.normal_(0.0, spread * 32**-0.5)
        else:
            head.weight = torch.nn.Parameter(torch.randn(head.weight.shape) * spread * 32**-0.5)
    model.eval()
    return model


@dataclass(frozen=True, repr=False)
class Pair:
    """An LM and an RM with one tokenizer. Engines get copies: these stay as transformers made them."""

    lm: PreTrainedModel
    rm: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def make(cls, kind: str, dtype: torch.dtype) -> Pair:
        lm, rm = language_model(kind), reward_model(kind)
        for model in (lm, rm):
            torch.nn.Module.to(model, dtype)
        return cls(lm, rm, word_tokenizer())

    def engine(self, cls: type[TransformersEngine] = TransformersEngine, **options: Any) -> TransformersEngine:
        return cls(copy.deepcopy(self.lm), self.tokenizer, **options)

    def reward(self, **options: Any) -> ClassifierReward:
        return ClassifierReward(copy.deepcopy(self.rm), self.tokenizer, **options)


def words(ids: Sequence[int]) -> str:
    """Return a prompt with these ids for the word tokenizer."""
    return " ".join(f"w{i}" for i in ids)


PIECES = ["<unk>", "</s>", *"abcdefgh", " ", ".", "\n", "ab", "c d", "ef.", "gh\n", "ba"]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Reads text letter by letter; some tokens that an LM may draw are two or three letters."""
    tokenizer = Tokenizer(WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r".|\n"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def letter_engine(*, ends: bool = False, **options: Any) -> TransformersEngine:
    """Return an LM of letters. Unless `ends`, it never draws the end token or the unknown token."""
    model: Any = language_model("gpt2", vocabulary=len(PIECES))
    head = torch.nn.Linear(model.lm_head.in_features, len(PIECES))
    head.weight.data = model.lm_head.weight.data
    head.bias.data = torch.tensor([-50.0, 0.0 if ends else -50.0] + [0.0] * (len(PIECES) - 2))
    model.lm_head = head
    return TransformersEngine(model, letter_tokenizer(), **options)

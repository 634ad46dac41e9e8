"""Small tokenizers of the kinds that LMs have. Special tokens are the first ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
END = 2
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
WORDS = ("the", "cat", "sat", "on", "mat", "rain", "is", "water", "don", "'", "t", ".", ",", "!", "日本", "語", "да", "é")
TEXTS = ["the cat sat on the mat, the rain is water.", "日本語のテキスト 日本語", "Привет как дела, привет", "naïve café 😀😀"]


def byte_level() -> Tokenizer:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=320, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    pieces = [SPACE, "\ufffd", *"abcdefghijklmnoprstuvwxyz.,'!", "日", "本", "д", "в"]
    merges = [(SPACE, "t"), ("t", "h"), (f"{SPACE}t", "h"), ("c", "a"), (SPACE, SPACE), ("日", "本"), ("д", "в")]
    names = dict.fromkeys([*SPECIAL, *BYTES, *pieces, *(a + b for a, b in merges)])
    model = BPE({name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return Tokenizer(model)


def llama_2() -> Tokenizer:
    """BPE with byte fallback, whose decoder removes the space that the normalizer adds at the start."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def gemma() -> Tokenizer:
    """BPE with byte fallback that adds no space."""
    tokenizer = _byte_fallback()
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece Unigram, as in T5 and XLM-R."""
    letters = dict.fromkeys("".join(TEXTS).replace(" ", ""))
    scores = dict.fromkeys(SPECIAL, 0.0) | dict.fromkeys([SPACE, *letters], -8.0)
    scores |= {f"{SPACE}{word}": -4.0 - i / 10 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(Unigram(list(scores.items()), 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """WordPiece, as in BERT: words are separated by spaces, and the decoder removes some of them before punctuation."""
    letters = dict.fromkeys("".join(TEXTS).replace(" ", ""))
    names = dict.fromkeys([*SPECIAL, *letters, *WORDS, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker for maker in (byte_level, llama_2, gemma, unigram, wordpiece)
}


@cache
def text_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of KINDS, with the special tokens SPECIAL and <think>."""
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (*SPECIAL, "<think>")])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)

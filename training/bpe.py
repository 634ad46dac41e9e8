"""The shared tokenizer: lossless byte-level BPE of 4096 tokens with the project's chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from common import Log, read_json, write_json
from corpus import EOS, PAD, render, stories, train_dialogues

VOCAB = 4096
MAX_LENGTH = 512
# Words keep their leading space. Digits are separate, because a small vocabulary has no merges to spare for them.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- message['content'] -}}"
    "{%- elif message['role'] == 'user' -%}{{- '\\n\\nHuman: ' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '\\n\\nAssistant: ' + message['content'] + eos_token -}}"
    "{%- else -%}{{- raise_exception('roles are system, user and assistant') -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n\\nAssistant:' -}}{%- endif -%}"
)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save under the class name that every transformers release knows."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    kept = {key: value for key, value in read_json(path).items() if key not in ("is_local", "local_files_only")}
    write_json(kept | {"tokenizer_class": "PreTrainedTokenizerFast"}, path)


def build(data: Path, folder: Path, log: Log) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # The edge of a turn is split off first, so that no token crosses it.
            pre_tokenizers.Split("\n\n", "isolated"),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[
            AddedToken(EOS, special=True, normalized=False),
            AddedToken(PAD, special=True, normalized=False),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [render(turns).replace(EOS, "") for turns in train_dialogues(data)] + stories(data, "train")
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )
    save_tokenizer(tokenizer, folder)
    size = sum(len(text.encode()) for text in texts)
    log("tokenizer:", len(tokenizer), "tokens,", size, "bytes of text")

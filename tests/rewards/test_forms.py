"""Reward models read what their chat template writes, or the stated form of models without one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing

import cards
from cards.backends.forms import ResponseEncoder, TypedRow, with_form
from cards.backends.local.rewards import ClassifierReward
from cards.engines.text import encode
from cards.errors import RewardError, SettingError
from cards.events import FinishReason, Message, Prompt, Response
from cards.fingerprint import fingerprint

TINY = Path(cards.__file__).parent / "tiny" / "tokenizer"
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "gemma": "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "no end": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "end token": "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}",
}
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>"}
MESSAGES: list[Message] = [{"role": "user", "content": "What is rain?"}]
SAID = "It is water."


def tokenizer_with(template: str | None, end: str = "<|endoftext|>") -> Any:
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<start_of_turn>"]})
    tokenizer.chat_template = template
    return tokenizer


def read(tokenizer: Any, prompt: Prompt, response: Response, form: str | None = None) -> list[int]:
    shared = prompt.vocabulary == fingerprint(tokenizer)
    return ResponseEncoder(with_form(tokenizer, form), form, "rm").encode(prompt, response, shared)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("finish", ["stop", "length", None])
@pytest.mark.parametrize("path", ["ids", "text", "other template"])
def test_a_response_reads_as_the_chat_template_writes_it(kind: str, finish: FinishReason | None, path: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[kind], ENDS.get(kind, "<|endoftext|>"))
    turns: Any = [*MESSAGES, {"role": "assistant", "content": SAID}]
    expected = tokenizer.apply_chat_template(turns, tokenize=False)
    if finish != "stop":
        expected = expected[: expected.rindex(SAID) + len(SAID)]
    prompt = encode(tokenizer, MESSAGES)
    if path != "ids":
        prompt = Prompt(prompt.text, (), prompt.messages, "", prompt.template if path == "text" else None)
    end = (tokenizer.eos_token_id,) if finish == "stop" else ()
    response = Response(SAID, (*tokenizer(SAID, add_special_tokens=False)["input_ids"], *end), finish)
    assert read(tokenizer, prompt, response) == tokenizer(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("messages", [True, False])
def test_a_stop_string_is_not_read(messages: bool) -> None:
    tokenizer = tokenizer_with(TEMPLATES["chatml"], "<|im_end|>")
    prompt = encode(tokenizer, MESSAGES if messages else "What is rain?")
    ids = tuple(tokenizer(SAID + " STOP", add_special_tokens=False)["input_ids"])
    text = tokenizer.decode(read(tokenizer, prompt, Response(SAID, ids, "stop")))
    assert text == prompt.text + SAID + ("<|im_end|>\n" if messages else "")


def test_templates_that_drop_or_split_the_thinking_do_not_crash() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
        "<|im_end|>{% endfor %}"
    )
    tokenizer = tokenizer_with(template, "<|im_end|>")
    prompt = encode(hf.AutoTokenizer.from_pretrained(TINY), MESSAGES)
    for text, shown in [("<think>a", "<think>a"), ("<think>a</think>", ""), ("<think>a</think>Yes", "Yes")]:
        assert (
            tokenizer.decode(read(tokenizer, prompt, Response(text, (5,))))
            == "[user]What is rain?<|im_end|>[assistant]" + shown
        )


def test_a_template_that_leaves_the_response_out_is_refused() -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(RewardError, match="leaves the response out"):
        read(tokenizer, encode(hf.AutoTokenizer.from_pretrained(TINY), MESSAGES), Response("a", (5,)))


def pair_tokenizer() -> Any:
    tokenizer = tokenizer_with(None)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)],
    )
    return tokenizer


@pytest.mark.parametrize("types", [0, 2])
def test_a_model_of_pairs_reads_question_and_response_as_a_pair(types: int) -> None:
    tokenizer = pair_tokenizer()
    torch.manual_seed(0)
    config = hf.BertConfig(
        id2label={0: "reward"},
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        type_vocab_size=max(types, 1),
        initializer_range=0.4,
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    model = hf.BertForSequenceClassification(config).eval()
    batch = tokenizer(MESSAGES[0]["content"], SAID, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**batch).logits.item()
    reward = ClassifierReward(model, tokenizer)
    prompt = encode(hf.AutoTokenizer.from_pretrained(TINY), MESSAGES)
    other = Response("No.", (7,))
    scores = asyncio.run(reward.score(prompt, [Response(" " + SAID, (5, 6), "stop"), other]))
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert isinstance(reward.tokens(prompt, other), TypedRow) == bool(types)


def test_the_form_of_a_model_without_a_template_is_asked_for_or_stated(tmp_path: Path) -> None:
    lm = tokenizer_with("{{ bos_token }}{{ messages[0].content }}")
    prompt = encode(lm, MESSAGES)
    rm = tokenizer_with(None)
    rm.add_special_tokens({"pad_token": "[PAD]"})
    rm.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", pair="<|endoftext|> $A <|endoftext|> $B", special_tokens=[("<|endoftext|>", 0)]
    )
    said = Response(" " + SAID, (5, 6))
    with pytest.raises(RewardError, match="Set form to 'pair'"):
        read(rm, prompt, said)
    assert rm.decode(read(rm, prompt, said, "plain")) == f"<|endoftext|>What is rain?\n\n{SAID}"
    assert rm.decode(read(rm, prompt, said, "pair")) == f"<|endoftext|>What is rain?<|endoftext|>{SAID}"
    template = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    (tmp_path / "t.jinja").write_text(template)
    for form in (template, str(tmp_path / "t.jinja")):
        assert rm.decode(read(rm, prompt, said, form)) == f"user=What is rain?;assistant={SAID}"
    assert rm.chat_template is None
    with pytest.raises(SettingError, match="form must be 'pair', 'plain'"):
        with_form(rm, "paired")
    with pytest.raises(SettingError, match="existing file"):
        with_form(rm, "missing.jinja")

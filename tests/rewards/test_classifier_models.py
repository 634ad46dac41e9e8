"""Reward models: scores depend on the text alone, not on batch, padding, pad id or what was read before."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import cards
from cards.backends.local.readers import CausalScorer, LayoutScorer
from cards.backends.local.rewards import ClassifierReward
from cards.engines.text import encode
from cards.errors import ModelError, RewardError, SettingError, UnknownNameError
from cards.events import FinishReason, Prompt, Response
from cards.fingerprint import fingerprint
from cards.usage import track_usage

TINY = Path(cards.__file__).parent / "tiny" / "tokenizer"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
}
KINDS = {
    "llama": hf.LlamaConfig,
    "mistral": hf.MistralConfig,
    "qwen2": hf.Qwen2Config,
    "gpt2": hf.GPT2Config,
    "opt": hf.OPTConfig,
    "gpt-neox": hf.GPTNeoXConfig,
    "bert": hf.BertConfig,
    "roberta": hf.RobertaConfig,
}


@pytest.fixture(scope="module")
def tokenizer() -> hf.PreTrainedTokenizerBase:
    return hf.AutoTokenizer.from_pretrained(TINY)


def make(kind: str, tokenizer: hf.PreTrainedTokenizerBase, labels: int = 1, **changes: object) -> Any:
    torch.manual_seed(0)
    names = {i: f"label{i}" for i in range(labels)}
    settings = {**SMALL, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "id2label": names, **changes}
    if kind == "opt":
        settings |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
    config = KINDS[kind](**settings, label2id={v: k for k, v in names.items()})
    model = hf.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name or "classifier" in name or "pooler" in name:
                parameter.normal_(0, 1)
    return model


def texts(tokenizer: hf.PreTrainedTokenizerBase, count: int = 12) -> tuple[Prompt, list[Response]]:
    chance = random.Random(1)
    prompt = encode(tokenizer, [{"role": "user", "content": "How was the film?"}])
    words = "I loved it The music was so good that we stayed and sang all night"
    answers = [" " + " ".join(chance.choices(words.split(), k=chance.randrange(1, 20))) for _ in range(count)]
    return prompt, [Response(a, tuple(tokenizer(a)["input_ids"])) for a in answers]


@pytest.mark.parametrize("kind", KINDS)
async def test_score_equals_the_models_own_on_one_unpadded_text(kind: str, tokenizer: hf.PreTrainedTokenizerBase) -> None:
    model = make(kind, tokenizer)
    prompt, responses = texts(tokenizer)
    rows = [torch.tensor([[*prompt.token_ids, *r.token_ids]]) for r in responses]
    with torch.inference_mode():
        expected = [model(row).logits.item() for row in rows]
    reward = ClassifierReward(model, tokenizer, slots=3)
    assert isinstance(reward.reader, LayoutScorer if kind in ("bert", "roberta") else CausalScorer)
    together = await reward.score(prompt, responses)
    one_by_one = [(await reward.score(prompt, [r]))[0] for r in responses]
    at_once = await asyncio.gather(*(reward.score(prompt, [r, r]) for r in responses))
    assert together == pytest.approx(expected, abs=1e-4)
    assert one_by_one == pytest.approx(expected, abs=1e-4)
    assert [pair[1] for pair in at_once] == pytest.approx(expected, abs=1e-4)
    await reward.aclose()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
async def test_pad_id_and_padding_side_do_not_move_the_score(kind: str, tokenizer: hf.PreTrainedTokenizerBase) -> None:
    prompt, responses = texts(tokenizer)
    eos = tokenizer.eos_token_id
    ended = [Response(r.text, (*r.token_ids, eos), "stop") for r in responses]  # the last token is the pad id below
    scores = []
    for pad_id, side in [(tokenizer.pad_token_id, "right"), (eos, "right"), (eos, "left")]:
        changed = hf.AutoTokenizer.from_pretrained(TINY)
        changed.pad_token_id, changed.padding_side = pad_id, side
        model = make(kind, tokenizer)
        model.config.pad_token_id = pad_id
        reward = ClassifierReward(model, changed, slots=4)
        reward.vocabulary = fingerprint(tokenizer)
        scores.append(await reward.score(prompt, ended))
        await reward.aclose()
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert scores[2] == pytest.approx(scores[0], abs=1e-4)


async def test_only_new_tokens_are_read(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    reward = ClassifierReward(make("llama", tokenizer), tokenizer, slots=8)
    prompt, responses = texts(tokenizer, 6)
    with track_usage() as usage:
        await reward.score(prompt, [Response()])
        assert usage.rm_tokens == len(prompt.token_ids)
        await reward.score(prompt, responses)
        answers = {r.token_ids for r in responses}
        assert usage.rm_tokens <= len(prompt.token_ids) + sum(map(len, answers))
        before = usage.rm_tokens
        grown = [r + cards.Segment(" Yes.", tuple(tokenizer(" Yes.")["input_ids"])) for r in responses]
        await reward.score(prompt, grown)
        assert usage.rm_tokens - before == sum(len(g.token_ids) for g in grown) - sum(len(r.token_ids) for r in responses)
    assert usage.rm_calls == 13
    await reward.aclose()


async def test_another_tokenizer_reads_the_text_and_its_own_template(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    own = hf.AutoTokenizer.from_pretrained(TINY)
    own.add_tokens(["<turn>"])
    own.chat_template = (
        "{% for m in messages %}<turn>{{ m.role }}: {{ m.content }}{% if not loop.last or not continue_final_message %}"
        "<turn>{% endif %}{% endfor %}"
    )
    reward = ClassifierReward(make("llama", own), own)
    prompt = encode(tokenizer, [{"role": "user", "content": "Hi"}])
    done, begun = Response(" Hello", (7, 8), "stop"), Response(" Hello", (7, 8))
    assert own.decode(reward.tokens(prompt, Response())) == "<turn>user: Hi<turn>"
    assert own.decode(reward.tokens(prompt, done)) == "<turn>user: Hi<turn><turn>assistant: Hello<turn>"
    assert own.decode(reward.tokens(prompt, begun)) == "<turn>user: Hi<turn><turn>assistant: Hello"
    raw = encode(tokenizer, "Once upon")
    assert own.decode(reward.tokens(raw, Response(" a time", (1, 2)))) == "Once upon a time"
    await reward.aclose()


async def test_a_text_under_the_same_template_reads_as_its_ids_do(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    """An engine that has text only says where an answer ends, and no id that the end could be read from."""
    reward = ClassifierReward.load("tiny")
    prompt = encode(tokenizer, [{"role": "user", "content": "Hi"}])
    ids = tuple(tokenizer(" Hello", add_special_tokens=False)["input_ids"])
    unknown = Prompt(prompt.text, (), prompt.messages, "", prompt.template)
    ends: list[tuple[tuple[int, ...], FinishReason | None]] = [((), None), ((tokenizer.eos_token_id,), "stop")]
    for end, finish in ends:
        told = reward.tokens(unknown, Response(" Hello", (0,), finish))
        assert told == reward.tokens(prompt, Response(" Hello", ids + end, finish))
    await reward.aclose()


async def test_shared_vocabulary_passes_token_ids_through(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    reward = ClassifierReward(make("llama", tokenizer), hf.AutoTokenizer.from_pretrained(TINY))
    prompt = encode(tokenizer, "Once upon")
    assert reward.tokens(prompt, Response("whatever", (11, 12, 13))) == [*prompt.token_ids, 11, 12, 13]
    await reward.aclose()


@pytest.mark.parametrize("kind", ["llama", "bert"])
async def test_outputs_can_be_chosen_and_weighted(kind: str, tokenizer: hf.PreTrainedTokenizerBase) -> None:
    model = make(kind, tokenizer, labels=3)
    prompt, responses = texts(tokenizer, 4)
    columns = []
    for output in (0, "label1", 2):
        reward = ClassifierReward(model, tokenizer, output=output)
        columns.append(await reward.score(prompt, responses))
        await reward.aclose()
    weighted = ClassifierReward(model, tokenizer, output=[1.0, -2.0, 0.5])
    expected = [a - 2 * b + 0.5 * c for a, b, c in zip(*columns, strict=True)]
    assert await weighted.score(prompt, responses) == pytest.approx(expected, abs=1e-4)
    await weighted.aclose()
    with pytest.raises(SettingError, match=r"has 3 outputs: 0 \(label0\), 1 \(label1\)"):
        ClassifierReward(model, tokenizer)
    with pytest.raises(UnknownNameError, match="Did you mean 'label1'"):
        ClassifierReward(model, tokenizer, output="labell1")
    with pytest.raises(SettingError, match="output must be between 0 and 2"):
        ClassifierReward(model, tokenizer, output=3)
    with pytest.raises(SettingError, match="output must have 3 weights"):
        ClassifierReward(model, tokenizer, output=[1.0, 2.0])


async def test_non_finite_score_is_an_error_that_names_the_text(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    model = make("llama", tokenizer)
    reward = ClassifierReward(model, tokenizer)
    with torch.no_grad():
        model.score.weight.fill_(torch.nan)
    prompt, [response] = texts(tokenizer, 1)
    with pytest.raises(RewardError, match=r"got nan for the response '.*" + response.text[-5:-1]):
        await reward.score(prompt, [response])
    await reward.aclose()


async def test_text_longer_than_the_context_is_refused_with_its_length(tokenizer: hf.PreTrainedTokenizerBase) -> None:
    reward = ClassifierReward(make("llama", tokenizer), tokenizer, context=20)
    with pytest.raises(RewardError, match="reads at most 20 tokens, got 3"):
        await reward.score(encode(tokenizer, "Hi"), [Response("x", (5,) * 30)])
    await reward.aclose()


def test_model_without_a_score_head_is_refused(tmp_path: Path, tokenizer: hf.PreTrainedTokenizerBase) -> None:
    config = hf.LlamaConfig(**SMALL, vocab_size=len(tokenizer))
    hf.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no trained score head"):
        ClassifierReward.load(str(tmp_path))


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        ClassifierReward.load("tiny1")

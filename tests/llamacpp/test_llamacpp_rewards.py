"""Rewards from GGUF files against the forward pass of the same classifiers in transformers."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.gguf_classifiers import write_classifier
from tokenizers.processors import RobertaProcessing

from cards import CARDS, Decoder
from cards.backends.files import TINY
from cards.backends.llamacpp.rewards import LlamaReward
from cards.backends.llamacpp.scores import EncoderScorer
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.scoring import SlotScorer
from cards.errors import ModelError, SettingError
from cards.events import Prompt, Response
from cards.registry import load_engine, load_reward
from cards.testing import RewardContract
from cards.usage import track_usage

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 130,
    "initializer_range": 0.4,
    "vocab_size": 4096,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
GELU = 0.03  # llama.cpp computes it from a table in float16
CONFIGS = {
    "llama": hf.LlamaConfig,
    "mistral": hf.MistralConfig,
    "qwen2": hf.Qwen2Config,
    "qwen3": hf.Qwen3Config,
    "roberta": hf.RobertaConfig,
    "bert": hf.BertConfig,
}


def make(kind: str, labels: int = 1, **changes: object) -> Any:
    torch.manual_seed(0)
    names = {i: f"label{i}" for i in range(labels)}
    settings = SMALL | {"id2label": names, "label2id": {v: k for k, v in names.items()}} | changes
    if kind == "qwen3":
        settings |= {"head_dim": 8}
    model = hf.AutoModelForSequenceClassification.from_config(CONFIGS[kind](**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name or "classifier" in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return model


def pair_tokenizer() -> Any:
    """The embedded tokenizer with the separators of RoBERTa, and no chat template."""
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY / "rm", sep_token="<|endoftext|>", cls_token="<|endoftext|>")
    end = ("<|endoftext|>", 0)
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(end, end, trim_offsets=False, add_prefix_space=False)
    tokenizer.chat_template = None
    return tokenizer


def texts(engine: TransformersEngine, count: int = 12) -> tuple[Prompt, list[Response]]:
    chance = random.Random(1)
    words = ["I", "loved", "it", "The", "music", "was", "so", "good", "that", "we", "stayed", "and", "sang", "all", "night"]
    answers = ["", *(" " + " ".join(chance.choices(words, k=chance.randrange(1, 20))) for _ in range(count))]
    responses = [Response(answer, engine.tokenize(answer)) for answer in answers]
    ended = Response(answers[1], (*engine.tokenize(answers[1]), 0), "stop")
    return engine.encode([{"role": "user", "content": "How was the film?"}]), [*responses, ended]


@pytest.fixture(scope="module")
def rm_file(tmp_path_factory: pytest.TempPathFactory, tiny_reward: ClassifierReward) -> str:
    """The embedded RM, with its head as metadata."""
    file = tmp_path_factory.mktemp("rm") / "rm.gguf"
    return str(write_classifier(tiny_reward.model, file, head="metadata", metadata={"cards.target": 3.1}))


@pytest.fixture
async def reward(rm_file: str) -> AsyncIterator[LlamaReward]:
    reward = LlamaReward.load(rm_file, dtype="float32", threads=1)
    yield reward
    await reward.aclose()


class TestLlamaReward(RewardContract):
    @pytest.fixture
    def reward(self, reward: LlamaReward) -> LlamaReward:
        return reward

    @pytest.fixture
    def engine(self, tiny: TransformersEngine) -> TransformersEngine:
        return tiny


async def test_rewards_and_their_cost_equal_those_of_transformers(
    reward: LlamaReward, tiny_reward: ClassifierReward, tiny: TransformersEngine
) -> None:
    prompt, responses = texts(tiny)
    found, costs = [], []
    for one in (reward, tiny_reward):
        one.forget()
        with track_usage() as usage:
            found.append([*await one.score(prompt, responses), *await one.score(prompt, responses[3:5])])
        costs.append((usage.rm_calls, usage.rm_tokens, usage.rm_cached_tokens, usage.flops))
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert costs[0] == costs[1]


async def test_prefixes_of_a_text_are_read_once(reward: LlamaReward, tiny: TransformersEngine) -> None:
    prompt, responses = texts(tiny)
    whole = max(responses, key=lambda response: len(response.token_ids))
    with track_usage() as usage:
        for end in range(1, len(whole.token_ids) + 1):
            ids = whole.token_ids[:end]
            await reward.score(prompt, [Response(str(tiny.tokenizer.decode(list(ids))), ids)])
    assert usage.rm_tokens == len(prompt.token_ids) + len(whole.token_ids)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "roberta"])
@pytest.mark.parametrize("labels", [1, 3])
async def test_other_architectures_equal_their_own_forward_pass(
    kind: str, labels: int, tiny: TransformersEngine, tmp_path: Path
) -> None:
    model = make(kind, labels)
    place = "tensor" if kind == "qwen3" else "metadata"  # llama.cpp knows heads of Qwen3
    file = write_classifier(model, tmp_path / "rm.gguf", head=place)
    weights = [1.0, -0.5, 2.0][:labels]
    found = LlamaReward.load(str(file), dtype="float32", output=weights, slots=3, threads=1)
    tokenizer = pair_tokenizer() if kind == "roberta" else tiny.tokenizer
    wanted = ClassifierReward(model, tokenizer, output=weights)
    assert found.context == wanted.context
    prompt, responses = texts(tiny)
    assert [found.tokens(prompt, r) for r in responses] == [wanted.tokens(prompt, r) for r in responses]
    together = await found.score(prompt, responses)
    assert together == pytest.approx(await wanted.score(prompt, responses), abs=GELU if kind == "roberta" else 2e-4)
    alone = [(await found.score(prompt, [response]))[0] for response in responses]
    assert alone == pytest.approx(together, abs=1e-4)
    assert isinstance(found.scorer, SlotScorer) == (kind != "roberta")
    await found.aclose()
    with pytest.raises(ModelError, match="closed"):
        await found.score(prompt, responses)


@pytest.mark.parametrize("logits", [1, 2**25])
async def test_an_encoder_reads_more_texts_than_slots_and_fails_for_none(
    logits: int, tiny: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cards.backends.llamacpp.cache.OUTPUTS", logits)  # memory for few or many texts at a time
    model = make("roberta")
    reward = LlamaReward.load(str(write_classifier(model, tmp_path / "rm.gguf")), dtype="float32", slots=3, threads=1)
    assert isinstance(reward.scorer, EncoderScorer)
    read: list[int] = []
    outputs = reward.scorer._outputs

    def counted(rows: Any) -> Any:
        read.append(len(rows))
        return outputs(rows)

    monkeypatch.setattr(reward.scorer, "_outputs", counted)
    prompt, responses = texts(tiny)
    found = await reward.score(prompt, responses)
    assert found == pytest.approx(await ClassifierReward(model, pair_tokenizer()).score(prompt, responses), abs=GELU)
    assert sum(read) == len(responses)
    assert max(read) == (1 if logits == 1 else 3)
    await reward.aclose()


async def test_a_cache_in_float16_changes_rewards_little(
    tiny_reward: ClassifierReward, tiny: TransformersEngine, rm_file: str
) -> None:
    coarse = LlamaReward.load(rm_file, dtype="float16", threads=1)
    prompt, responses = texts(tiny)
    assert await coarse.score(prompt, responses) == pytest.approx(await tiny_reward.score(prompt, responses), abs=0.05)
    await coarse.aclose()


async def test_cards_gives_the_same_text_as_with_the_reward_in_transformers(
    rm_file: str, lm_file: str, tiny_reward: ClassifierReward, tiny: TransformersEngine
) -> None:
    lm = load_engine(lm_file, dtype="float32", threads=1)
    rm = load_reward(rm_file, dtype="float32", threads=1)
    for seed in range(4):
        results = [
            await Decoder(engine, reward, CARDS()).agenerate("How was the film?", max_tokens=24, seed=seed)
            for engine, reward in ((lm, rm), (lm, tiny_reward), (tiny, rm), (tiny, tiny_reward))
        ]
        assert len({result.text for result in results}) == 1
    await lm.aclose()
    await rm.aclose()


async def test_a_cancelled_score_leaves_no_slot_taken(reward: LlamaReward, tiny: TransformersEngine) -> None:
    prompt, responses = texts(tiny)
    wanted = await reward.score(prompt, responses)
    for delay in (0.0, 0.001, 0.003) * 10:
        reward.forget()
        task = asyncio.create_task(reward.score(prompt, responses))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert isinstance(reward.scorer, SlotScorer)
    await reward.scorer.scheduler.settle()
    assert reward.scorer.scheduler.slots.idle.all()
    assert await reward.score(prompt, responses) == pytest.approx(wanted, abs=1e-5)


async def test_a_reranker_reads_its_template_and_gives_the_log_odds_of_yes(tiny: TransformersEngine, tmp_path: Path) -> None:
    model = make("qwen3", 2)
    metadata = {
        "qwen3.pooling_type": 4,
        "qwen3.classifier.output_labels": ["yes", "no"],
        "tokenizer.chat_template.rerank": "Query: {query}\nDocument: {document}\nAnswer:",
    }
    file = write_classifier(model, tmp_path / "reranker.gguf", head="tensor", metadata=metadata)
    reward = load_reward(str(file), dtype="float32", threads=1)
    prompt = tiny.encode([{"role": "user", "content": "Name a {document}."}])
    [found] = await reward.score(prompt, [Response(" A book", tiny.tokenize(" A book"))])
    ids = tiny.tokenizer("Query: Name a {document}.\nDocument: A book\nAnswer:")["input_ids"]
    with torch.inference_mode():
        yes, no = model(torch.tensor([ids])).logits[0].tolist()
    assert found == pytest.approx(yes - no, abs=1e-4)
    await reward.aclose()


@pytest.mark.parametrize(
    ("kind", "head", "message"),
    [
        ("qwen2", "none", "no classification head.*implicit:.*self-evaluation"),
        ("qwen2", "tensor", "does not load for its architecture"),
        ("bert", "none", "left out the layer before"),
    ],
)
def test_a_file_that_cannot_be_scored_exactly_is_refused(kind: str, head: str, message: str, tmp_path: Path) -> None:
    file = write_classifier(make(kind), tmp_path / "rm.gguf", head=head)
    with pytest.raises(ModelError, match=message):
        load_reward(str(file))


def test_errors_name_what_to_do(rm_file: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(rm_file).read_bytes()[:5000])
    with pytest.raises(ModelError, match="damaged"):
        load_reward(str(cut))
    with pytest.raises(ModelError, match="--reward"):
        load_engine(rm_file)
    three = write_classifier(make("qwen2", 3), tmp_path / "three.gguf", head="metadata")
    with pytest.raises(SettingError, match="3 outputs"):
        load_reward(str(three))
    encoder = write_classifier(make("roberta", type_vocab_size=2), tmp_path / "types.gguf")
    with pytest.raises(ModelError, match="token types"):
        load_reward(str(encoder))
    with pytest.raises(ModelError, match="--reward"):
        load_engine(str(encoder))


def test_a_reward_from_a_file_imports_neither_torch_nor_transformers(rm_file: str, lm_file: str) -> None:
    program = f"""
import sys
from cards import Decoder, CARDS
from cards.registry import load_engine, load_reward
decoder = Decoder(load_engine({lm_file!r}, threads=1), load_reward({rm_file!r}, threads=1), CARDS())
result = decoder("How was the film?", max_tokens=8)
assert result.usage.rm_tokens > 0
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr

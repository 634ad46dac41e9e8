"""Rewards from vLLM are those of the same classifier in transformers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import cards
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.errors import ModelError, RewardError, SettingError, UnavailableError, UnknownNameError
from cards.events import Message, Prompt, Response
from cards.rewards.base import Reward
from cards.usage import track_usage

TINY = Path(cards.__file__).parent / "tiny"
LONG = "That is so good to hear, I hope you will have a great time there with all of them! Tell me more about it."


def responses(engine: Engine) -> list[Response]:
    """An answer that grows, and others; the first is empty, the last is finished."""
    texts = [*(LONG[:n] for n in (0, 4, 12, 15, 40, 85, len(LONG))), "No.", "I hate you, you idiot."]
    found = [Response(text, engine.tokenize(text)) for text in texts]
    return [*found, Response("Fine.", (*engine.tokenize("Fine."), *sorted(engine.end_ids)[:1]), "stop")]


PROMPTS: list[Any] = [
    [Message(role="user", content="I am going to see my parents this weekend.")],
    "Well, what do you say to that?",
    [Message(role="user", content="I lost my job. " * 20)],
]


@pytest.mark.parametrize("number", range(3))
async def test_rewards_are_those_of_the_classifier(
    reward: Reward, twin_reward: ClassifierReward, twin: Engine, number: int
) -> None:
    prompt, answers = twin.encode(PROMPTS[number]), responses(twin)
    want = await twin_reward.score(prompt, answers)
    assert await reward.score(prompt, answers) == pytest.approx(want, abs=1e-5)
    one_by_one = [(await reward.score(prompt, [answer]))[0] for answer in reversed(answers)]
    assert one_by_one == pytest.approx(want[::-1], abs=1e-5)
    assert max(want) - min(want) > 0.1


async def test_text_in_other_tokens_is_read_as_text(reward: Reward, twin_reward: ClassifierReward) -> None:
    prompt = Prompt("How are you?", (3, 4, 5), None, "another vocabulary")
    answers = [Response(" Fine.", (9,)), Response(" Bad, and you?", (8, 7))]
    assert await reward.score(prompt, answers) == pytest.approx(await twin_reward.score(prompt, answers), abs=1e-5)


async def test_the_books(reward: Reward, twin: Engine) -> None:
    prompt = twin.encode("A prompt of which nobody has heard before. " * 12)
    answers = [Response(), Response(" Yes.", twin.tokenize(" Yes."))]
    tokens = sum(len(prompt.token_ids) + len(answer.token_ids) for answer in answers)
    with track_usage() as usage:
        await reward.score(prompt, answers)
    assert usage.rm_calls == 2
    assert usage.rm_tokens + usage.rm_cached_tokens == tokens
    with track_usage() as again:
        await reward.score(prompt, answers)
    assert again.rm_cached_tokens == 2 * ((len(prompt.token_ids) - 1) // 32 * 32)
    reward.forget()
    with track_usage() as anew:
        await reward.score(prompt, answers[:1])
    assert (anew.rm_tokens, anew.rm_cached_tokens) == (len(prompt.token_ids), 0)


async def test_a_text_beyond_the_context_is_refused(reward: Reward, twin: Engine) -> None:
    prompt = twin.encode("Hello there.")
    assert reward.context is not None
    with pytest.raises(RewardError, match=f"reads at most {reward.context} tokens"):
        await reward.score(prompt, [Response("", (5,) * reward.context)])


def test_it_knows_its_target(reward: Reward, twin_reward: ClassifierReward) -> None:
    assert (reward.target, reward.name) == (twin_reward.target, "vllm:tiny")
    assert reward.target is not None


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with three labels, of another chat template than the LM."""
    folder = tmp_path_factory.mktemp("of_three")
    tokenizer = hf.AutoTokenizer.from_pretrained(TINY / "rm")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=tokenizer.pad_token_id,
        id2label={0: "kind", 1: "dull", 2: "rude"}, label2id={"kind": 0, "dull": 1, "rude": 2},
    )  # fmt: skip
    hf.Qwen2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_cannot_work_is_refused_before_vllm_starts(of_three: Path) -> None:
    from cards.backends.vllm.rewards import VLLMReward

    with pytest.raises(SettingError, match=r"has 3 outputs: 0 \(kind\), 1 \(dull\), 2 \(rude\)"):
        VLLMReward.load(str(of_three))
    with pytest.raises(UnknownNameError, match="reward output 'kin'"):
        VLLMReward.load(str(of_three), output="kin")
    with pytest.raises(ModelError, match="no trained score head"):
        VLLMReward.load(str(TINY / "lm"))
    settings = json.loads((of_three / "config.json").read_text()) | {"is_causal": False}
    bidirectional = shutil.copytree(of_three, of_three.with_name("bidirectional"))
    (bidirectional / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="its attention is not causal"):
        VLLMReward.load(str(bidirectional), output="kind")


async def test_a_text_that_scores_differently_in_a_batch_is_refused(reward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.to_thread(reward.check_batches)
    classify, calls = reward.host.classify, count()

    async def drifting(tokens: list[int]) -> Any:
        output = await classify(tokens)
        output.outputs.data = output.outputs.data + next(calls)
        return output

    monkeypatch.setattr(reward.host, "classify", drifting)
    with pytest.raises(ModelError, match="scores the same text differently in a batch"):
        await asyncio.to_thread(reward.check_batches)


async def test_several_outputs_and_the_end_of_an_engine(of_three: Path, twin: Engine) -> None:
    """Weights and templates as in transformers; when vLLM's process dies the requests say so; nothing is left running."""
    from cards.backends.vllm.rewards import VLLMReward

    weights = [1.0, -0.5, -2.0]
    reward = await asyncio.to_thread(VLLMReward.load, str(of_three), output=weights, slots=4, enforce_eager=True)
    prompt, answers = twin.encode(PROMPTS[0]), responses(twin)
    want = await ClassifierReward.load(str(of_three), output=weights).score(prompt, answers)
    assert await reward.score(prompt, answers) == pytest.approx(want, abs=1e-4)

    [process] = reward.host.llm.engine_core.resources.engine_manager.processes
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="vLLM failed while it served model"):
        await asyncio.gather(*(reward.score(prompt, answers) for _ in range(50)))
    await reward.aclose()
    with pytest.raises(ModelError, match="was closed"):
        await reward.score(prompt, answers)
    assert not process.is_alive()
    for worker in workers:  # they see that their parent has gone
        while Path(f"/proc/{worker}").exists() and "\nState:\tZ" not in Path(f"/proc/{worker}/status").read_text():
            await asyncio.sleep(0.1)

"""End to end: an answer of vLLM's LM and RM is that of the same pair in transformers, and so is the way to it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.waiting import eventually

from cards import CARDS, Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.engines.base import Engine
from cards.errors import MismatchError
from cards.events import Message, Result, Segment
from cards.methods import STARS, BestOfN, Vanilla
from cards.methods.base import Method
from cards.rewards.base import Reward

PROMPTS: list[str | Sequence[Message]] = [
    [Message(role="user", content="What did you think of the new Star Wars film?")],
    [Message(role="user", content="I am so tired of my job.")],
    "Once upon a time",
]
METHODS: dict[str, Method] = {
    "auto": CARDS(),
    "one": CARDS(width=1),
    "four": CARDS(width=4),
    "all": CARDS(width=21),
    "mcp": CARDS(measure="mcp", entropy_threshold=0.7, top_p=0.9),
    "hard": CARDS(acceptance="hard", max_rejections=5),
    "stars": STARS(),
    "best of n": BestOfN(n=5),
    "vanilla": Vanilla(),
}
pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")


@pytest.fixture
def pair(engine: Engine, reward: Reward, twin: TransformersEngine, twin_reward: ClassifierReward) -> Any:
    def decoders(method: Method) -> tuple[Decoder, Decoder]:
        guided = "reward" in method.needed
        return Decoder(engine, reward if guided else None, method), Decoder(twin, twin_reward if guided else None, method)

    return decoders


def same(got: Result, want: Result) -> None:
    assert (got.text, got.token_ids, got.finish_reason) == (want.text, want.token_ids, want.finish_reason)
    assert len(got.segments) == len(want.segments)
    for a, b in zip(got.segments, want.segments, strict=True):
        same_segment(a, b)
        for c, d in zip(a.rejected, b.rejected, strict=True):
            same_segment(c, d)
    for count in ("candidates", "accepted", "rejected", "fallbacks"):
        assert getattr(got.usage, count) == getattr(want.usage, count)


def same_segment(a: Segment, b: Segment) -> None:
    def near(value: float | None) -> Any:
        return None if value is None else pytest.approx(value, abs=1e-5)

    bare = {"reward": None, "threshold": None, "entropy": None, "rejected": ()}
    assert replace(a, **bare) == replace(b, **bare)  # type: ignore[arg-type]
    assert (a.reward, a.threshold) == (near(b.reward), near(b.threshold))
    assert (a.entropy is None) == (b.entropy is None)
    assert a.entropy is None or a.entropy == pytest.approx(b.entropy, abs=1e-4)


@pytest.mark.parametrize("name", METHODS)
async def test_answers_are_those_of_transformers(pair: Any, name: str) -> None:
    ours, theirs = pair(METHODS[name])
    lengths = []
    for seed in range(3):
        options = {"seed": seed, "max_tokens": 32, "trace": True}
        got = await ours.agenerate(PROMPTS[seed], **options)
        same(got, await theirs.agenerate(PROMPTS[seed], **options))
        assert got.usage.lm_wasted_tokens == got.usage.lm_decoded_tokens - len(got.token_ids) >= 0
        lengths.append(len(got.token_ids))
    assert sum(lengths) > 20


async def test_batches_stop_strings_and_limits(pair: Any) -> None:
    ours, theirs = pair(CARDS(max_rejections=3))
    for options in ({"max_tokens": 24}, {"max_tokens": 5}, {"max_tokens": 24, "stop": [" I", "."]}):
        got = await ours.abatch(PROMPTS * 2, progress=False, **options)
        for a, b in zip(got, await theirs.abatch(PROMPTS * 2, progress=False, **options), strict=True):
            same(a, b)


async def test_from_code_without_a_loop(pair: Any) -> None:
    ours, theirs = pair(CARDS())
    same(ours(PROMPTS[0], max_tokens=20), theirs(PROMPTS[0], max_tokens=20))
    stream = ours.stream(PROMPTS[0], max_tokens=200)
    next(stream)
    stream.close()
    await eventually(lambda: not ours.engine.host.llm.output_processor.has_unfinished_requests(), lambda: asyncio.sleep(0.01))


async def test_a_deadline_gives_the_answer_so_far(pair: Any) -> None:
    ours, _ = pair(CARDS(target=50.0, width=21, max_rejections=100))
    result = await ours.agenerate(PROMPTS[0], max_tokens=400, deadline=0.5)
    assert result.finish_reason == "deadline"
    assert not ours.engine.host.llm.output_processor.has_unfinished_requests()


def test_methods_that_need_logits_are_refused(engine: Engine, reward: Reward) -> None:
    with pytest.raises(MismatchError, match="needs logits"):
        Decoder(engine, reward, "args")


def test_names_lead_here(engine: Engine, reward: Reward, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the page shows works."""
    from cards.backends.vllm.engine import VLLMEngine
    from cards.backends.vllm.rewards import VLLMReward

    asked = []

    def load(model: Any) -> Any:
        def loaded(name: str, **options: Any) -> Any:
            asked.append(name)
            return model

        return staticmethod(loaded)

    async def stay_open(self: object) -> None:
        pass

    for cls, model in ((VLLMEngine, engine), (VLLMReward, reward)):
        monkeypatch.setattr(cls, "load", load(model))
        monkeypatch.setattr(cls, "aclose", stay_open)
    programs = re.findall(r"^```py\n(.*?)^```$", (Path(__file__).parents[2] / "docs/vllm.md").read_text(), re.M | re.S)
    assert programs
    for program in programs:
        exec(program, {"__name__": "__main__"})
    assert asked.count("tiny") >= 2

"""Process rewards: what a step is, how steps are joined, what is asked and what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from helpers.random_models import Pair, word_tokenizer, words

from cards import CARDS, Decoder, Step
from cards.backends.local.rewards import ClassifierReward
from cards.engines.mock import MockEngine
from cards.errors import RewardError, SettingError
from cards.events import Prompt, Response
from cards.registry import load_reward
from cards.rewards import FunctionReward, ImplicitReward, ProcessReward, StepTokenReward
from cards.rewards.process import finished_steps
from cards.rewards.scale import sigmoid
from cards.usage import track_usage

PROMPT = Prompt("?", (1, 2), None, "some")


class Notes(FunctionReward):
    """Scores the length of a text; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(self.length)

    async def length(self, prompt: str, response: str) -> float:
        self.asked.append(response)
        return float(len(response))


def response(text: str, finished: bool = False) -> Response:
    return Response(text, (1,) if text else (), "stop" if finished else None)


@pytest.mark.parametrize(
    ("text", "finished", "steps"),
    [
        ("", False, []),
        ("one", False, []),
        ("one", True, ["one"]),
        ("one;", False, ["one;"]),
        ("one;two", False, ["one;"]),
        ("one;two;", False, ["one;", "one;two;"]),
        ("one;two", True, ["one;", "one;two"]),
        (";;one; ;two;", False, [";;one;", ";;one; ;two;"]),
        ("one; ", True, ["one;"]),
    ],
)
def test_a_step_ends_behind_a_delimiter_or_with_the_answer(text: str, finished: bool, steps: list[str]) -> None:
    assert [step.text for step in finished_steps(response(text, finished), ";")] == steps


JOINED: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda s: s[-1],
    "min": min,
    "mean": lambda s: sum(s) / len(s),
    "product": math.prod,
}


@pytest.mark.parametrize("join", JOINED)
@pytest.mark.parametrize("squash", [False, True])
async def test_the_rewards_of_steps_are_joined(join: Any, squash: bool) -> None:
    reward = ProcessReward(Notes(), ";", join, squash=squash)
    texts = ["a;bc", "a;bc;", "", "x", "abc;d;"]
    lengths = [[2], [2, 5], [0], [0], [4, 6]]
    each = [[1 / (1 + math.exp(-n)) if squash else float(n) for n in row] for row in lengths]
    assert await reward.score(PROMPT, [response(t) for t in texts]) == pytest.approx([JOINED[join](s) for s in each])


async def test_a_step_is_asked_for_once() -> None:
    notes = Notes()
    reward = ProcessReward(notes, ";", "min")
    with track_usage() as usage:
        await reward.score(PROMPT, [response(t) for t in ("a;b;", "a;c", "a;b;", "")])
        assert sorted(notes.asked) == ["", "a;", "a;b;"]
        await reward.score(PROMPT, [response("a;b;d;"), response("a;b;d;e")])
        assert notes.asked[3:] == ["a;b;d;"]
        await reward.score(PROMPT, [response("a;b;d;", finished=True)])
        assert usage.rm_calls == len(notes.asked) == 4
        await reward.score(Prompt("!"), [response("a;")])
    assert usage.rm_calls == 5
    reward.forget()
    await reward.score(PROMPT, [response("a;")])
    assert len(notes.asked) == 6


async def test_scores_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.rewards.process.CACHED_STEPS", 3)
    reward = ProcessReward(Notes(), ";", "mean")
    assert await reward.score(PROMPT, [response("a;b;c;d;e;")]) == [6.0]
    assert len(reward.cached) == 3
    assert await reward.score(PROMPT, [response("a;b;c;d;e;")]) == [6.0]


async def test_steps_reach_a_classifier_as_text(llama_float64: Pair) -> None:
    """A step may end inside a token, so the LM's tokens are of no use."""
    classifier = llama_float64.reward()
    reward = ProcessReward(classifier, "w9", "last")
    engine = llama_float64.engine()
    prompt, answer = engine.encode(words([3, 4, 5])), engine.extended(engine.encode("w3"), Response(), [7, 8, 9, 10])
    assert answer.text == " w7 w8 w9 w10"
    [expected] = await classifier.score(prompt, [Response("w7 w8 w9", (7, 8, 9))])
    assert await reward.score(prompt, [answer]) == pytest.approx([expected], abs=1e-9)


async def test_a_classifier_with_a_template_of_its_own_renders_each_step(llama_float64: Pair) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    classifier = ClassifierReward(llama_float64.rm, tokenizer)
    prompt = Prompt("w3", (3,), ({"role": "user", "content": "w3"},), classifier.vocabulary, tokenizer.chat_template)
    [expected] = await classifier.score(prompt, [Response("w7 w8", (7, 8))])
    found = await ProcessReward(classifier, "w8").score(prompt, [Response("w7 w8 w9", (7, 8, 9))])
    assert found == pytest.approx([expected], abs=1e-9)


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_steps_guide_cards(llama_float64: Pair) -> None:
    method = CARDS(target=0.8, boundary=Step(maximum=6, delimiter="w1"), width=2, max_rejections=4)
    results = []
    for forget in (False, True):
        reward = ProcessReward(llama_float64.reward(), "w1", "mean", squash=True)
        decoder = Decoder(llama_float64.engine(), reward, method)
        for seed in range(4):
            if forget:
                reward.forget()
                decoder.engine.forget()
            results.append(decoder(words([3, 4, 5 + seed]), seed=seed, max_tokens=12))
    assert [r.token_ids for r in results[:4]] == [r.token_ids for r in results[4:]]
    assert [r.reward for r in results[:4]] == pytest.approx([r.reward for r in results[4:]], abs=1e-9)


# Models that judge steps by a token.

SIGNS = "ab;#+-"


def judge() -> MockEngine:
    """Prefers + after a step with more a than b."""

    def logits(ids: Sequence[int]) -> list[float]:
        text = "".join(SIGNS[i] for i in ids)
        step = text.removesuffix("#").rpartition("#")[2]
        good = float(step.count("a") - step.count("b"))
        return [0.0, 5.0, 0.0, 0.0, good / 2, -good / 2]

    return MockEngine(logits, SIGNS, logits=True)


def steps_reward(**options: Any) -> StepTokenReward:
    return StepTokenReward(judge(), tag="#", delimiter=";", **options)


async def test_a_step_is_as_good_as_the_token_behind_its_tag_says() -> None:
    reward = steps_reward()
    prompt = judge().encode("ab")
    found = await reward.score(prompt, [response(t) for t in ("aab;", "aab;bbb;", "aab;bbb;a", "", "aa")])
    assert found == pytest.approx([sigmoid(1.0), sigmoid(-3.0), sigmoid(-3.0), 0.5, 0.5])
    assert await reward.score(prompt, [response("aab;aa", finished=True)]) == pytest.approx([sigmoid(2.0)])
    swapped = steps_reward(good="-", bad="+")
    assert await swapped.score(prompt, [response("aab;")]) == pytest.approx([sigmoid(-1.0)])


def test_tags_stand_behind_every_finished_step() -> None:
    assert steps_reward().tagged(response("a;b;c")) == "a#;b#"
    assert steps_reward().tagged(response("a;b;c", finished=True)) == "a#;b#;c#"


async def test_judged_steps_are_joined_and_each_is_read_once() -> None:
    reward = ProcessReward(steps_reward(), ";", "min")
    with track_usage() as usage:
        found = await reward.score(judge().encode("ab"), [response("bbb;aab;"), response("aab;")])
    assert found == pytest.approx([sigmoid(-3.0), sigmoid(1.0)])
    assert (usage.rm_calls, usage.rm_tokens) == (3, 3)


def test_names_nest() -> None:
    reward = load_reward("process:implicit:tiny-aligned,tiny", device="cpu", slots=2)
    assert isinstance(reward, ProcessReward)
    assert isinstance(reward.reward, ImplicitReward)
    assert reward.name == "process:implicit:tiny-aligned,tiny"
    reward = load_reward("process:steps:tiny", device="cpu", slots=2)
    assert isinstance(reward, ProcessReward)
    assert isinstance(reward.reward, StepTokenReward)


async def test_a_bad_score_of_a_step_is_an_error() -> None:
    with pytest.raises(RewardError, match="nan"):
        await ProcessReward(FunctionReward(lambda p, r: math.nan), ";").score(PROMPT, [response("a;")])


def test_settings_that_make_no_reward_are_refused() -> None:
    with pytest.raises(SettingError, match="delimiter"):
        ProcessReward(Notes(), "")
    with pytest.raises(SettingError, match="join must be one of last, min, mean, product, got 'sum'"):
        ProcessReward(Notes(), join="sum")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="different tokens"):
        steps_reward(good="+", bad="+")
    with pytest.raises(SettingError, match="must be tokens of"):
        steps_reward(good="x")


def test_a_sigmoid_neither_overflows_nor_rounds_away() -> None:
    assert [sigmoid(x) for x in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
    np.testing.assert_allclose([sigmoid(-700.0), sigmoid(-2.0) + sigmoid(2.0)], [math.exp(-700), 1.0])

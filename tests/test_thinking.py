"""Reasoning models: rewards read what follows the thinking, and methods leave the thinking alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import cards
from cards import CARDS, Decoder, Prompt, Response
from cards.backends.forms import ResponseEncoder
from cards.engines.mock import MockEngine
from cards.engines.text import encode
from cards.errors import SettingError
from cards.events import Result
from cards.fingerprint import fingerprint
from cards.grammar import Grammar
from cards.methods import ARGS, SMC, BestOfN, RejectionSampling, Vanilla
from cards.methods.base import Method
from cards.registry import load_reward
from cards.rewards import AfterThinking, FunctionReward, LengthReward, WeightedSum
from cards.testing import MockReward, check_law, law_of, random_value
from cards.thinking import KNOWN, Markers, markers_of

THINK = Markers()
TINY = Path(cards.__file__).parent / "tiny" / "tokenizer"
QWEN = "{% if '</think>' in content %}...{% endif %}"

ANSWERS = [
    ("plain", False, "plain"),
    ("<think>a</think>\n\nb", False, "b"),
    ("a</think>\n\nb", True, "b"),  # the template opened the thinking
    ("a</think>b", False, "b"),  # the opening marker was lost, as in text without special tokens
    ("<think>a", False, ""),
    ("a", True, ""),
    ("", True, ""),
    ("<think>a</think>b<think>c</think> d", False, "b d"),
    ("<think>a</think>b<think>c", False, "b"),
    ("a</think>b<think>c</think>d", True, "bd"),
    ("<think>a<think>b</think>c", False, "c"),
    ("\n<think></think>", False, ""),
]


@pytest.mark.parametrize(("text", "opened", "answer"), ANSWERS)
def test_the_answer_is_the_text_outside_the_thinking(text: str, opened: bool, answer: str) -> None:
    assert THINK.answer(text, opened, finished=True) == answer
    for end in range(len(text)):  # what an incomplete response shows is shown by all its continuations
        shown = THINK.answer(text[:end], opened, finished=False)
        if "</think>" in text[:end] or opened or text.startswith("<think>"):
            assert answer.startswith(shown)


def test_the_beginning_of_a_marker_is_shown_only_at_the_end() -> None:
    assert THINK.answer("a <thi", False, finished=False) == "a "
    assert THINK.answer("a <thi", False, finished=True) == "a <thi"


def test_the_markers_are_those_of_the_chat_template() -> None:
    assert markers_of(QWEN) == Markers("<think>", "</think>")
    assert markers_of("{{ '[THINK]' }}{{ '[/THINK]' }}") == Markers("[THINK]", "[/THINK]")
    assert markers_of("{{ messages }}") is markers_of(None) is None
    assert all(markers_of(known.opening + known.closing) == known for known in KNOWN)


@pytest.mark.parametrize("opening", ["", "<think>\n"])
async def test_a_reward_reads_what_follows_the_thinking(opening: str) -> None:
    inner = MockReward()
    reward = AfterThinking(inner)
    prompt = Prompt("Q: " + opening, (1, 2), template=QWEN)
    texts = [
        ("" if opening else "<think>") + rest for rest in ("a", "a</think>", "a</think> Yes", "b</think>\nYes", "a</think>No")
    ]
    responses = [Response(text, tuple(range(len(text)))) for text in texts]
    expected = [random_value(text) for text in ("", "", "Yes", "Yes", "No")]
    assert await reward.score(prompt, responses) == expected
    assert [(await reward.score(prompt, [response]))[0] for response in responses] == expected
    assert await reward.score_next(prompt, responses[1], responses[2:]) == expected[2:]
    assert await reward.score(prompt, [Response()]) == [0.0]


async def test_responses_without_thinking_reach_the_reward_with_their_tokens() -> None:
    class Recording(MockReward):
        seen: list[tuple[Prompt, tuple[Response, ...]]]

        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            self.seen.append((prompt, tuple(responses)))
            return await super().rate(prompt, responses)

    inner = Recording()
    inner.seen = []
    prompt = Prompt("Q: ", (1, 2), vocabulary="v", template=QWEN)
    plain, thinking = Response("Yes", (3,)), Response("<think>a</think>No", (4, 5, 6))
    assert await AfterThinking(inner).score(prompt, [thinking, plain]) == [random_value("No"), random_value("Yes")]
    assert (prompt, (plain,)) in inner.seen
    assert (replace(prompt, vocabulary=""), (replace(thinking, text="No"),)) in inner.seen


THINKS = (  # like the template of DeepSeek-R1: it drops thinking, and opens it for the next response
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
INSERTS = (  # like that of Qwen3: it inserts an empty block before the last response
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' and '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("finish", ["stop", "length", None])
@pytest.mark.parametrize("lm", [THINKS, INSERTS])
@pytest.mark.parametrize("rm", [THINKS, INSERTS])
async def test_a_reward_model_reads_the_answer_in_its_template(lm: str, rm: str, finish: Any) -> None:
    tokenizers = [hf.AutoTokenizer.from_pretrained(TINY) for _ in range(2)]
    for tokenizer, template in zip(tokenizers, (lm, rm), strict=True):
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<think>", "</think>"]})
        tokenizer.chat_template = template
    messages: Any = [{"role": "user", "content": "What is rain?"}]
    prompt = encode(tokenizers[0], messages)
    read = list[str]()

    class Reader(MockReward):
        async def rate(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[float]:
            shared = prompt.vocabulary == fingerprint(tokenizers[1])
            encoder = ResponseEncoder(tokenizers[1], None, "rm")
            read.extend(str(tokenizers[1].decode(encoder.encode(prompt, response, shared))) for response in responses)
            return [0.0 for _ in responses]

    opened = lm == THINKS
    for thought in ("Hm.", "Hm.</think>", "Hm.</think>\n\nWater."):
        text = thought if opened else "<think>" + thought
        ids = tuple(tokenizers[0](text, add_special_tokens=False)["input_ids"])
        await AfterThinking(Reader()).score(prompt, [Response(text, ids, finish)])
    start = "<|im_start|>user\nWhat is rain?<|im_end|>\n"
    turn = start + "<|im_start|>assistant\n" + ("<think>\n\n</think>\n\n" if rm == INSERTS and lm != rm else "")
    assert read[-1] == turn + "Water." + ("<|im_end|>\n" if finish == "stop" else "")
    assert read[0] == read[1]
    assert read[0] in (start, turn, turn + "<|im_end|>\n")


# A model that thinks: <think>, some x and y, </think>, then letters. The answer depends on the thinking.

TOKENS = ("<think>", "</think>", "x", "y", "a", "b", "e")
IDS = {token: i for i, token in enumerate(TOKENS)}


def thinker(opened: bool = False, share: float = 1.0) -> Callable[[tuple[int, ...]], list[float]]:
    """Return a model that begins with <think> with probability `share`, unless the prompt has opened the thinking."""

    def model(ids: tuple[int, ...]) -> list[float]:
        if not opened and IDS["<think>"] not in ids and not {IDS["a"], IDS["b"]}.intersection(ids[1:]):
            return [share, 0, 0, 0, (1 - share) / 2, (1 - share) / 2, 0]
        if IDS["</think>"] not in ids and (opened or IDS["<think>"] in ids):
            return [0, 0.4, 0.4, 0.2, 0, 0, 0]
        liked = 0.7 if ids.count(IDS["x"]) % 2 else 0.3
        return [0, 0, 0, 0, 0.6 * liked, 0.6 * (1 - liked), 0.4]

    return model


class Thinker(MockEngine):
    """The mock engine with a chat template that knows thinking."""

    def __init__(self, opened: bool = False, share: float = 1.0) -> None:
        super().__init__(thinker(opened, share), TOKENS, end="e", name="thinker")

    def encode(self, prompt: Any) -> Prompt:
        return replace(super().encode(prompt), template=QWEN)


def decode(method: Method, seed: int, *, opened: bool = False, share: float = 1.0, reward: Any = None, n: int = 24) -> Result:
    decoder = Decoder(Thinker(opened, share), reward or AfterThinking(FunctionReward(liking)), method)
    return asyncio.run(decoder.agenerate("a<think>" if opened else "a", max_tokens=n, seed=seed))


def liking(prompt: str, response: str) -> float:
    assert "think" not in prompt + response
    return response.count("a") - response.count("b")


PIECEWISE: list[Method] = [
    CARDS(target=1.0, beta=1.0, temperature=1.0, entropy_threshold=0.5, min_segment=1, max_segment=2),
    SMC(),
    ARGS(temperature=1.0, top_k=3),
]


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("method", PIECEWISE, ids=lambda method: method.name)
def test_the_thinking_is_sampled_once_without_tests_and_without_reward_calls(method: Method, opened: bool) -> None:
    for seed in range(8):
        inner = MockReward()
        result = decode(method, seed, opened=opened, reward=AfterThinking(inner))
        thinking, marker, answer = result.text.partition("</think>")
        assert marker or result.finish_reason == "length"
        first = result.segments[0]
        assert first.text == thinking + marker
        assert (first.reward, first.candidates, first.fallback) == (None, 1, False)
        assert all(segment.reward is not None for segment in result.segments[1:])
        assert all("think" not in text and not set(text).intersection("xy") for text in inner.scored)
        assert "".join(segment.text for segment in result.segments) == result.text
        assert answer.strip() == "".join(segment.text for segment in result.segments[1:])


def test_after_the_thinking_the_method_has_its_own_law() -> None:
    method = RejectionSampling(target=1.0, beta=1.0, temperature=1.0, top_k=None, max_candidates=200)
    reward = AfterThinking(FunctionReward(liking), skip=True)
    results = Decoder(Thinker(), reward, method).batch(["a"] * 1500, max_tokens=5, progress=False)
    draws = [result.token_ids for result in results]
    law, wrong = dict[tuple[int, ...], float](), law_of(thinker(), 5, end=IDS["e"], after=(IDS["a"],))
    for thought, p in _thoughts(5):
        if thought[-1] != IDS["</think>"] or len(thought) == 5:
            law[thought] = p
            continue
        answers = law_of(thinker(), 5 - len(thought), end=IDS["e"], after=(IDS["a"], *thought))
        weights = {ids: q * min(1.0, 2.718281828 ** (_liking(ids) - 1.0)) for ids, q in answers.items()}
        law |= {(*thought, *ids): p * w / sum(weights.values()) for ids, w in weights.items()}
    check_law(draws, law, wrong=wrong)


@pytest.mark.parametrize("method", [*PIECEWISE, BestOfN(n=3, temperature=1.0)], ids=lambda method: method.name)
def test_a_grammar_leaves_the_thinking_free_and_applies_to_the_answer(method: Method) -> None:
    pytest.importorskip("llguidance")
    lengths = set()
    for seed in range(12):
        decoder = Decoder(Thinker(), AfterThinking(FunctionReward(liking), skip=True), method)
        result = decoder("a", max_tokens=40, seed=seed, grammar=Grammar.regex("(ab){2}b?"))
        thinking, _, answer = result.text.partition("</think>")
        assert thinking.startswith("<think>")
        assert answer in ("abab", "ababb")
        lengths.add(len(thinking))
    assert len(lengths) > 2


def _thoughts(most: int) -> list[tuple[tuple[int, ...], float]]:
    found, model = list[tuple[tuple[int, ...], float]](), thinker()
    for length in range(1, most + 1):
        for ids in itertools.product(range(len(TOKENS)), repeat=length):
            ended = IDS["</think>"] in ids
            if (ended and ids.index(IDS["</think>"]) != length - 1) or (not ended and length < most):
                continue
            p = 1.0
            for i, token in enumerate(ids):
                p *= model((IDS["a"], *ids[:i]))[token]
            if p:
                found.append((ids, p))
    return found


def _liking(ids: Sequence[int]) -> int:
    return ids.count(IDS["a"]) - ids.count(IDS["b"])


def test_methods_for_complete_responses_let_each_response_think() -> None:
    decoder = Decoder(Thinker(), AfterThinking(FunctionReward(liking)), BestOfN(n=6, temperature=1.0))
    result = decoder("a", max_tokens=24, seed=3, trace=True)
    candidates = [result.segments[0], *result.segments[0].rejected]
    assert len({candidate.text.partition("</think>")[0] for candidate in candidates}) > 1
    assert result.reward == max(candidate.reward for candidate in candidates if candidate.reward is not None)
    together = Decoder(Thinker(), AfterThinking(FunctionReward(liking), skip=True), BestOfN(n=6, temperature=1.0))
    first, last = together("a", max_tokens=24, seed=3, trace=True).segments
    assert first.text.endswith("</think>")
    assert last.candidates == 6


def test_a_response_that_does_not_think_is_left_to_the_method() -> None:
    method = PIECEWISE[0]
    plain = Decoder(Thinker(share=0.0), FunctionReward(liking), method)
    for seed in range(5):
        expected = asyncio.run(plain.agenerate("a", max_tokens=12, seed=seed))
        found = decode(method, seed, share=0.0, n=12)
        assert (found.text, found.reward) == (expected.text, expected.reward)


def test_thinking_that_does_not_end_is_returned_without_a_reward() -> None:
    method = PIECEWISE[0]
    result = next(r for r in (decode(method, seed, n=3) for seed in range(50)) if "</think>" not in r.text)
    assert (result.finish_reason, result.reward, len(result.token_ids)) == ("length", None, 3)
    assert result.usage.rm_calls == 0


def test_combinations_and_names_skip_the_thinking_too() -> None:
    reward = load_reward("after-thinking:length:1-3?graded=yes&skip=no&opening=[THINK]&closing=[/THINK]")
    assert isinstance(reward, AfterThinking)
    assert (reward.skip, reward.given) == (False, Markers("[THINK]", "[/THINK]"))
    assert isinstance(reward.reward, LengthReward)
    assert reward.reward.graded
    both = WeightedSum.of([AfterThinking(FunctionReward(liking)), FunctionReward(lambda p, r: 0.0)])
    assert decode(PIECEWISE[0], 1, reward=both).segments[0].reward is None
    with pytest.raises(SettingError, match="both opening and closing"):
        load_reward("after-thinking:json?opening=<t>")


def test_unknown_markers_are_an_error_before_anything_is_decoded() -> None:
    decoder = Decoder(MockEngine(thinker(), TOKENS, end="e"), AfterThinking(FunctionReward(liking)), PIECEWISE[0])
    with pytest.raises(SettingError, match="no known markers"):
        decoder("a")
    given = AfterThinking(FunctionReward(liking), opening="<think>", closing="</think>")
    assert Decoder(MockEngine(thinker(), TOKENS, end="e"), given, PIECEWISE[0])("a").text.startswith("<think>")
    assert Decoder(MockEngine(thinker(), TOKENS, end="e"), AfterThinking(FunctionReward(liking)), Vanilla())("a").text

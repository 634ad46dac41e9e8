"""SentencePiece vocabularies in GGUF files: the ids, bytes and texts are those of the tokenizer they were made from."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from helpers.gguf_random import write_llama
from helpers.text_tokenizers import text_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from cards import FixedLength
from cards.backends.llamacpp.engine import LlamaEngine
from cards.engines.base import Ask
from cards.engines.detokenizer import Detokenizer
from cards.events import Response
from cards.fingerprint import fingerprint
from cards.sampling import Sampling
from cards.testing.engine_contract import proposals

KINDS = ("llama_2", "gemma", "unigram")
TEXTS = (
    "the cat sat on the mat, the rain is water.",
    "naïve café, Ünïcödé & e\u0301",
    "Привет как дела",
    "日本語のテキスト 日本語",
    "중국의 수도는 베이징이다",
    "กรุงเทพมหานคร",
    "भारत की राजधानी",
    "عاصمة فرنسا هي",
    "Ελλάδα",
    "שלום עולם",
    "Thủ đô của Việt Nam",
    "☀️🌧️ 😀👩‍👩‍👧 \U00020000",
    "a\tb\nc\r\n\n\nd",
    "<s>the cat</s>on<think>",
    "",
)
SPACED = (" leading and  double  spaces   and trailing ", "<s>the cat</s> on<think> it </think>", " ")
engines: dict[str, LlamaEngine] = {}
fixed = settings(max_examples=40, derandomize=True, deadline=None, database=None)
numbers = st.lists(st.integers(0, 10**6), max_size=30)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name: str = request.param
    file = write_llama(tmp_path_factory.mktemp(name) / "model.gguf", name)
    engines[name] = LlamaEngine.load(str(file), dtype="float32", slots=2, threads=1)
    return name


def test_the_fingerprint_is_that_of_the_folder(kind: str) -> None:
    own = fingerprint(engines[kind].tokenizer)
    assert own == fingerprint(text_tokenizer(kind))
    for other in {"unigram", "wordpiece", "byte_level"} - {kind}:  # llama_2 and gemma have the same vocabulary
        assert own != fingerprint(text_tokenizer(other))


def test_the_ids_of_texts_are_those_of_the_folder(kind: str) -> None:
    """llama.cpp adds the first space of a Unigram text also before a space; models with such vocabularies merge spaces."""
    for text in TEXTS if kind == "unigram" else (*TEXTS, *SPACED):
        assert ids_of(engines[kind].tokenizer, text) == ids_of(text_tokenizer(kind), text), text


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@fixed
@given(text=st.sampled_from((*TEXTS, *SPACED)), picks=numbers, cuts=numbers)
def test_the_parts_of_a_text_join_to_its_text(kind: str, text: str, picks: list[int], cuts: list[int]) -> None:
    tokenizer = engines[kind].tokenizer
    ids = [*ids_of(tokenizer, text), *(pick % len(tokenizer) for pick in picks)]
    prompt = [1, *ids_of(tokenizer, "the cat")]
    ends = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    for before in (prompt, []):
        found, last = "", ""
        for start, end in pairwise(ends):
            detokenizer = Detokenizer(tokenizer, [*before, *ids[:start]])
            last = detokenizer.push(ids[start:end])
            found += last
        found += detokenizer.finish()[len(last) :]
        assert found == tokenizer.decode([*before, *ids]).removeprefix(tokenizer.decode(before))


async def test_the_segments_of_a_response_join_to_its_text(kind: str) -> None:
    engine = engines[kind]
    prompt = engine.encode("the cat")
    for seed in range(20):
        response = Response()
        while response.finish_reason is None:
            left = 24 - len(response.token_ids)
            ask = Ask(prompt, response, left, FixedLength(3), Sampling(), seed=seed, segment=len(response.token_ids))
            [segment] = await proposals(engine, ask)
            response += segment
        ids = [token for token in response.token_ids if token not in engine.end_ids]
        whole = engine.tokenizer.decode([*prompt.token_ids, *ids])
        assert response.text == whole.removeprefix(engine.tokenizer.decode(prompt.token_ids))

"""The texts of parts join to the text of all tokens, for every kind of tokenizer and wherever the parts end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from helpers.random_models import letter_tokenizer
from helpers.text_tokenizers import BYTES, END, KINDS, SPACE, text_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from cards.boundaries import FixedLength, Punctuation
from cards.engines.ask import Ask
from cards.engines.detokenizer import Detokenizer
from cards.engines.writer import Writer
from cards.events import Prompt, Response

fixed = settings(max_examples=40, derandomize=True, deadline=None, database=None)
kinds = pytest.mark.parametrize("kind", KINDS)
SCRIPTS: tuple[tuple[int, int], ...] = (
    (0x20, 0x7F),
    (0xA0, 0x180),
    (0x400, 0x460),
    (0x5D0, 0x5EB),
    (0x620, 0x660),
    (0x900, 0x970),
    (0xE01, 0xE3B),
)
SCRIPTS += ((0x3041, 0x3097), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0x1F600, 0x1F640), (0x20000, 0x20010), (0x300, 0x310))
texts = st.lists(
    st.sampled_from(SCRIPTS).flatmap(
        lambda script: st.text(st.characters(min_codepoint=script[0], max_codepoint=script[1] - 1))
    ),
    max_size=8,
).map("".join)
numbers = st.lists(st.integers(0, 10**6), max_size=40)


def decoded(kind: str, ids: Sequence[int]) -> str:
    return str(text_tokenizer(kind).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def added(kind: str, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that the tokens add to the text of a prompt."""
    before, after = decoded(kind, prompt), decoded(kind, [*prompt, *ids])
    assert after.startswith(before)
    return after[len(before) :]


def parts(kind: str, prompt: Sequence[int], ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    """Return the texts of the parts of a response, with a new detokenizer for each. The last part is finished."""
    ends = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    read = []
    for start, end in pairwise(ends):
        detokenizer = Detokenizer(text_tokenizer(kind), [*prompt, *ids[:start]])
        read.append(detokenizer.push(ids[start:end]))
    return [*read, detokenizer.finish()[len(read[-1]) :]]


def prompt_of(kind: str, text: str = "the cat") -> list[int]:
    return [1, *text_tokenizer(kind)(text, add_special_tokens=False)["input_ids"]]


@kinds
@fixed
@given(text=texts, cuts=numbers)
def test_the_parts_of_a_text_join_to_what_decode_adds_to_the_prompt(kind: str, text: str, cuts: list[int]) -> None:
    ids, prompt = text_tokenizer(kind)(text, add_special_tokens=False)["input_ids"], prompt_of(kind)
    assert "".join(parts(kind, prompt, ids, cuts)) == added(kind, prompt, ids)
    assert "".join(parts(kind, (), ids, cuts)) == decoded(kind, ids)


def expected(kind: str, ids: Sequence[int]) -> str:
    """The text of tokens after a prompt. `decode` is not it where a byte is invalid: with byte fallback it then loses all."""
    if kind not in ("llama_2", "gemma"):
        return added(kind, prompt_of(kind), ids)
    names = [name for name in text_tokenizer(kind).convert_ids_to_tokens(list(ids)) if name is not None]
    data = [bytes([BYTES.index(name)]) if name in BYTES else name.replace(SPACE, " ").encode() for name in names]
    return b"".join(data).decode(errors="replace")


@kinds
@fixed
@given(picks=numbers, cuts=numbers)
def test_the_parts_of_any_tokens_join_to_their_text(kind: str, picks: list[int], cuts: list[int]) -> None:
    """Also special tokens, ids beyond the vocabulary, and bytes that are no character."""
    ids = [pick % (len(text_tokenizer(kind)) + 9) for pick in picks]
    assert "".join(parts(kind, prompt_of(kind), ids, cuts)) == expected(kind, ids)


byte_runs = st.lists(
    st.one_of(st.binary(max_size=4), st.sampled_from(["é", "日", "😀"]).map(str.encode), st.sampled_from(["c", "the"])),
    max_size=9,
)


@pytest.mark.parametrize("kind", ["llama_2", "gemma"])
@fixed
@given(pieces=byte_runs, cuts=numbers)
def test_an_invalid_byte_damages_no_character_beside_it(kind: str, pieces: list[bytes | str], cuts: list[int]) -> None:
    tokenizer, ids, data = text_tokenizer(kind), list[int](), b""
    for piece in pieces:
        new = tokenizer.convert_tokens_to_ids([BYTES[byte] for byte in piece] if isinstance(piece, bytes) else list(piece))
        assert isinstance(new, list)
        ids += new
        data += piece if isinstance(piece, bytes) else piece.encode()
    assert "".join(parts(kind, prompt_of(kind), ids, cuts)) == data.decode(errors="replace")


@kinds
@fixed
@given(picks=numbers, text=texts)
def test_emitted_text_never_changes(kind: str, picks: list[int], text: str) -> None:
    tokenizer = text_tokenizer(kind)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], *(pick % len(tokenizer) for pick in picks)]
    detokenizer, shown = Detokenizer(tokenizer, prompt_of(kind)), ""
    for token in ids:
        grown = detokenizer.push([token])
        assert grown.startswith(shown)
        assert detokenizer.finish().startswith(grown)
        shown = grown


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "gemma"])
def test_a_character_is_emitted_with_its_last_byte_even_if_the_prompt_has_the_first(kind: str) -> None:
    tokenizer = text_tokenizer(kind)
    ids = tokenizer("龘𠀀", add_special_tokens=False)["input_ids"][-7:]  # a byte each
    detokenizer = Detokenizer(tokenizer, [*prompt_of(kind), ids[0]])
    assert [detokenizer.push([token]) for token in ids[1:]] == ["", "龘", "龘", "龘", "龘", "龘𠀀"]


def test_silent_tokens_have_no_text_and_other_special_tokens_have_theirs() -> None:
    tokenizer = text_tokenizer("llama_2")
    think, word = (tokenizer.convert_tokens_to_ids(name) for name in ("<think>", f"{SPACE}th"))
    assert isinstance(think, int)
    assert isinstance(word, int)
    assert Detokenizer(tokenizer, [1], frozenset({END})).push([think, word, END]) == "<think> th"
    assert Detokenizer(letter_tokenizer(), (), frozenset({1})).push([2, 1, 3]) == "ab"


class Counting:
    """A tokenizer that counts the tokens that it decodes."""

    def __init__(self, kind: str) -> None:
        self.inner, self.read = text_tokenizer(kind), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True, **options: Any) -> Any:
        self.read += len(token_ids)
        return self.inner.decode(list(token_ids), skip_special_tokens=skip_special_tokens, **options)


def response_of(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int], size: int | None, stop: tuple[str, ...]) -> Response:
    """The response that writers make of the tokens, in segments of `size` tokens, or that end with punctuation."""
    response, left = Response(), list(ids)
    boundary = Punctuation() if size is None else FixedLength(maximum=size)
    while response.finish_reason is None:
        ask = Ask(Prompt("", tuple(prompt)), response, len(left), boundary, stop=stop)
        writer = Writer(ask, tokenizer, frozenset({END}), 10**6)
        while writer.segment is None:
            writer.push(left.pop(0))
        response += writer.segment
    return response


@kinds
@pytest.mark.parametrize("size", [1, 7, None])
@pytest.mark.parametrize("stop", [(), ("no such text",)])
def test_decoding_takes_as_many_steps_a_token_for_long_responses_as_for_short(kind: str, size: int | None, stop: Any) -> None:
    text = "the cat sat on the mat. Où 日本 龘😀 да "
    ids = text_tokenizer(kind)(text, add_special_tokens=False)["input_ids"]
    steps = []
    for times in (4, 32):
        tokenizer = Counting(kind)
        response_of(tokenizer, prompt_of(kind), ids * times, size, stop)
        steps.append(tokenizer.read / (len(ids) * times))
    assert steps[1] <= 1.5 * steps[0] + 1


@kinds
@fixed
@given(text=texts, size=st.sampled_from([1, 2, 5, None]), stop=st.sampled_from([(), ("zz", "😀a")]))
def test_a_response_is_what_decode_adds_to_the_prompt_without_its_end_token(
    kind: str, text: str, size: int | None, stop: tuple[str, ...]
) -> None:
    ids, prompt = text_tokenizer(kind)(text, add_special_tokens=False)["input_ids"], prompt_of(kind)
    response = response_of(text_tokenizer(kind), prompt, [*ids, END], size, stop)
    want = added(kind, prompt, ids)
    found = re.search("zz|😀a", want) if stop else None
    assert response.text == (want if found is None else want[: found.start()])
    assert response.finish_reason == "stop"


@kinds
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_stop_string_may_be_a_special_token(kind: str, size: int) -> None:
    tokenizer, prompt = text_tokenizer(kind), prompt_of(kind)
    ids = tokenizer("the rain<think>is", add_special_tokens=False)["input_ids"]
    assert "<think>" in response_of(tokenizer, prompt, [*ids, END], size, ()).text
    stopped = response_of(tokenizer, prompt, [*ids, END], size, ("<think>",))
    assert stopped.text.strip() == "the rain"
    assert stopped.finish_reason == "stop"

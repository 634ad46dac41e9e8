"""Tokens become text without ever showing half a character; prompts become tokens; tokenizers are told apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from helpers.random_models import byte_tokenizer, letter_tokenizer, word_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import cards
from cards.engines.detokenizer import UNFINISHED, Detokenizer
from cards.engines.text import encode, find_stop, hold_back
from cards.errors import PromptError
from cards.fingerprint import fingerprint

TINY = Path(cards.__file__).parent / "tiny" / "tokenizer"
TEXTS = [
    "plain text",
    "naïve café",
    "日本語のテキスト",
    "😀😃 é \u200d👩\u200d👧 z",
    "a\nb\tc  d",
    "e\u0301 ẍ",
    f"a {UNFINISHED} b{UNFINISHED}",
]


@pytest.fixture(scope="module")
def tokenizers() -> list[PreTrainedTokenizerBase]:
    return [byte_tokenizer(), AutoTokenizer.from_pretrained(TINY)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [0, 1], ids=["bytes", "bpe"])
def test_text_grows_by_whole_characters_to_the_text_of_all_tokens(kind: int, text: str, tokenizers: Any) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for step in (1, 2, 3):
        detokenizer = Detokenizer(tokenizer, ())
        shown = ""
        for at in range(0, len(ids), step):
            grown = detokenizer.push(ids[at : at + step])
            assert grown.startswith(shown)
            assert text.startswith(grown)
            shown = grown
        assert detokenizer.finish() == text


@pytest.mark.parametrize("kind", [0, 1], ids=["bytes", "bpe"])
def test_text_after_any_context_is_what_the_tokens_add_to_it(kind: int, tokenizers: Any) -> None:
    """Also where the context ends in the middle of a character, and over windows much longer than the context kept."""
    tokenizer = tokenizers[kind]
    text = "Où est-il? 日本 and the rest of it, 😀, " * 4
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for cut in range(0, len(ids), 5):
        detokenizer = Detokenizer(tokenizer, ids[:cut])
        for token in ids[cut:]:
            detokenizer.push([token])
        before = tokenizer.decode(ids[:cut]).rstrip(UNFINISHED)
        assert before + detokenizer.finish() == text


def test_segments_of_a_text_join_wherever_they_are_cut() -> None:
    tokenizer = byte_tokenizer()
    text = "añ😀b日" * 6
    ids = tokenizer(text)["input_ids"]
    chance = random.Random(0)
    for _ in range(20):
        cuts = sorted(chance.sample(range(1, len(ids)), 6))
        joined = ""
        for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            detokenizer = Detokenizer(tokenizer, ids[:start])
            detokenizer.push(ids[start:end])
            joined += detokenizer.text
        assert joined == text


def test_an_unfinished_character_waits_and_is_shown_replaced_at_the_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("ab😀")["input_ids"]
    detokenizer = Detokenizer(tokenizer, ())
    assert detokenizer.push(ids[:-1]) == "ab"
    assert detokenizer.finish().startswith("ab" + UNFINISHED)
    assert detokenizer.push(ids[-1:]) == "ab😀"


@pytest.mark.parametrize(
    ("text", "stop", "searched", "at"),
    [
        ("abcabc", ("ca",), 0, 2),
        ("abcabc", ("x",), 0, None),
        ("abcabc", ("bc", "ab"), 0, 0),
        ("abcab", ("ab",), 4, 3),
        ("abcab", ("ab",), 3, 3),
        ("", ("a",), 0, None),
        ("abc", (), 0, None),
    ],
)
def test_the_first_stop_string_is_found(text: str, stop: tuple[str, ...], searched: int, at: int | None) -> None:
    assert find_stop(text, stop, searched) == at


def test_a_search_that_goes_on_finds_what_a_search_from_the_start_finds() -> None:
    chance = random.Random(1)
    for _ in range(300):
        text = "".join(chance.choices("ab", k=12))
        stops = tuple("".join(chance.choices("ab", k=chance.randint(1, 4))) for _ in range(2))
        want = find_stop(text, stops, 0)
        for end in range(1, len(text) + 1):
            if (found := find_stop(text[:end], stops, end - 1)) is not None:
                break
        earliest = min((text.find(s) + len(s) for s in stops if s in text), default=None)
        assert (found is None) == (want is None)
        if earliest is not None:
            assert end == earliest


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("hello EN", ("END",), "hello "),
        ("hello E", ("END", "LO"), "hello "),
        ("hello", ("END",), "hello"),
        ("aa", ("aab",), ""),
        ("aaa", ("aab",), "a"),
        ("a\n", ("\n\n",), "a"),
        ("text", (), "text"),
        ("END", ("END",), "END"),
    ],
)
def test_the_longest_end_that_may_begin_a_stop_string_is_held_back(text: str, stop: tuple[str, ...], shown: str) -> None:
    assert hold_back(text, stop) == shown


def test_raw_text_is_left_alone() -> None:
    tokenizer = letter_tokenizer()
    prompt = encode(tokenizer, " ab\n")
    assert prompt.text == " ab\n"
    assert list(prompt.token_ids) == tokenizer(" ab\n")["input_ids"]
    assert prompt.messages is None
    assert prompt.vocabulary == fingerprint(tokenizer)


def test_messages_go_through_the_chat_template(tokenizers: Any) -> None:
    tokenizer = tokenizers[1]
    messages = [{"role": "user", "content": "Who are you?"}]
    prompt = encode(tokenizer, messages)  # type: ignore[arg-type]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.text == rendered
    assert "Who are you?" in rendered
    assert list(prompt.token_ids) == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert prompt.messages == tuple(messages)
    assert prompt.template == tokenizer.chat_template


def test_messages_without_a_chat_template_are_refused_with_a_way_out() -> None:
    with pytest.raises(PromptError, match=r"no chat template.*raw text"):
        encode(word_tokenizer(), [{"role": "user", "content": "w2"}])


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "empty list"),
        (["hello"], "Message 0"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "Message 1"),
        ([{"role": "user", "content": None}], "content must be text"),
        ([{"role": "user", "content": " \n"}], "last message is empty"),
    ],
)
def test_malformed_messages_are_refused_by_number(messages: Any, named: str, tokenizers: Any) -> None:
    with pytest.raises(PromptError, match=named):
        encode(tokenizers[1], messages)


def test_fingerprints_are_equal_for_equal_vocabularies_only() -> None:
    assert fingerprint(letter_tokenizer()) == fingerprint(letter_tokenizer())
    kinds = [letter_tokenizer(), byte_tokenizer(), word_tokenizer(), word_tokenizer(81)]
    assert len({fingerprint(t) for t in kinds}) == len(kinds)


def test_padding_and_truncation_do_not_change_a_fingerprint() -> None:
    plain, padded = letter_tokenizer(), letter_tokenizer()
    padded.pad_token = "<unk>"
    padded(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert fingerprint(padded) == fingerprint(plain)

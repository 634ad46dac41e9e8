"""Utilities: known values, their range, and agreement among texts."""

from __future__ import annotations

import asyncio
import threading
from functools import cache
from itertools import product

import pytest

from cards.methods.responses.similarity import UTILITIES, agreement, chrf, exact, jaccard, rouge_l

MAT, MATS = "The cat sat on the mat, quietly.", "A cat is sitting on the mat."
TEXTS = ["", " ", "a", "A b", "b a", "...", "the cat", "The cat sat.", MAT, MATS, "yes", "yes it is"]


@pytest.mark.parametrize(
    ("answer", "reference", "percent"),
    [
        (MAT, MATS, 34.75069265507228),
        (MATS, MAT, 31.1836355669096),
        ("yes", "yes it is", 37.10506980161646),
        ("ab", "abc", 63.636363636363626),
    ],
)
def test_chrf_is_that_of_sacrebleu(answer: str, reference: str, percent: float) -> None:
    """Values of sacrebleu.metrics.CHRF().sentence_score."""
    assert 100 * chrf(answer, reference) == pytest.approx(percent)


def longest_common(a: list[str], b: list[str]) -> int:
    @cache
    def length(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@pytest.mark.parametrize("a", ["a", "a b", "b a b c", "c a b a", "a a a"])
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(a: str) -> None:
    for letters in product("abc", repeat=4):
        common = longest_common(a.split(), list(letters))
        precision, recall = common / len(a.split()), common / 4
        want = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(a, " ".join(letters)) == pytest.approx(want)


def test_rouge_l_and_jaccard_read_words_without_case_or_marks() -> None:
    assert rouge_l("The cat, sat!", "the CAT sat") == 1
    assert rouge_l(MAT, MATS) == pytest.approx(4 / 7)
    assert jaccard("The cat, the!", "the dog cat") == pytest.approx(2 / 3)
    assert exact(" a\n", "a") == 1
    assert exact("A", "a") == 0


@pytest.mark.parametrize("name", UTILITIES)
def test_utilities_lie_between_0_and_1_which_is_for_equals(name: str) -> None:
    for a, b in product(TEXTS, repeat=2):
        assert 0 <= UTILITIES[name](a, b) <= 1
        assert UTILITIES[name](a, a) == pytest.approx(1)
    assert UTILITIES[name](MAT, "XYZ") < 0.1


async def test_agreement_is_the_mean_utility_with_the_others() -> None:
    assert await agreement(["a b", "a", "c"], "jaccard") == [0.25, 0.25, 0.0]
    assert await agreement(["a"], "chrf") == [0.0]
    assert await agreement(["aa", "a", "b"], lambda answer, reference: len(answer) - len(reference)) == [1.0, -0.5, -0.5]


async def test_equal_texts_agree_to_the_last_bit() -> None:
    texts = [MAT, MATS, "a cat", MAT, "the mat", "on the mat", MATS]
    means = await agreement(texts, "chrf")
    assert means[0] == means[3]
    assert means[1] == means[6]


async def test_a_cancelled_comparison_ends_after_one_text_and_does_not_hold_the_event_loop() -> None:
    calls, go = list[str](), threading.Event()

    def compare(response: str, reference: str) -> float:
        calls.append(response)
        assert go.wait(60)
        return 1.0

    task = asyncio.create_task(agreement(["a", "b", "c", "d"], compare))
    while not calls:  # only possible if the event loop is free
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go.set()
    await asyncio.to_thread(lambda: None)
    await asyncio.sleep(0.05)
    assert set(calls) == {"a"}

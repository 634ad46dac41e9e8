"""Words and ends of sentences, in scripts with and without spaces."""

from __future__ import annotations

import pytest

from cards.words import count_words, word_pattern, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 3.5, naïve_x!", ["It", "s", "3", "5", "naïve_x"]),
        ("使用AI技术。", ["使", "用", "AI", "技", "术"]),
        ("データと 漢字", ["デ", "ー", "タ", "と", "漢", "字"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("하는 방법", ["하는", "방법"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
    ],
)
def test_a_letter_of_a_script_without_spaces_is_a_word(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("well-known -- isn't it?", 4), ("今天天气很好，我们去。", 9), ("한국어는 좋다", 2), ("用 AI 吧", 3)],  # noqa: RUF001
)
def test_words_are_counted_by_spaces_except_in_scripts_without(text: str, count: int) -> None:
    assert count_words(text) == count


@pytest.mark.parametrize(
    ("word", "text", "found", "certain"),
    [
        ("坏", "这是很坏的事情。", True, True),
        ("자살", "자살하는 방법", True, True),
        ("爆弾", "爆弾の作り方", True, True),
        ("ระเบิด", "ทำระเบิดเอง", True, True),
        ("AI", "使用AI技术", True, True),  # the letters beside it belong to other words
        ("AI", "使用AI", True, False),  # it may become AIM
        ("AI", "AIM", False, False),
        ("ai", "Thai AI.", True, True),
        ("坏A", "很坏AB", False, False),
        ("c++", "C++11", True, True),
    ],
)
def test_a_keyword_is_found_inside_text_of_scripts_without_spaces(word: str, text: str, found: bool, certain: bool) -> None:
    assert (word_pattern(word).search(text) is not None) is found
    assert (word_pattern(word, closed=True).search(text) is not None) is certain

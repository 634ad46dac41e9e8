"""Words and ends of sentences in all scripts, including those that are written without spaces."""

from __future__ import annotations

import regex

# Line_Break=SA has Thai, Lao, Khmer, Myanmar and their relatives.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tibetan}\p{Line_Break=SA}ー&&\w]"
SPACED = rf"[\w--{UNSPACED}]"
SENTENCE_END = regex.compile(r"[\p{Sentence_Terminal}\n…;\u037E\u061B\uFF1B\u0F0D\u0F0E]")  # and all semicolons
_UNSPACED = regex.compile(UNSPACED, regex.V1)
_WORD = regex.compile(rf"{UNSPACED}\p{{M}}*|{SPACED}+", regex.V1)


def words(text: str) -> list[str]:
    """Return the words of a text: runs of letters and digits. In scripts without spaces, each letter is a word."""
    return _WORD.findall(text)


def count_words(text: str) -> int:
    """Return the number of parts between spaces. In scripts without spaces, each letter with its marks counts as a part."""
    return sum(len(words(part)) if _UNSPACED.search(part) else 1 for part in text.split())


def word_pattern(word: str, closed: bool = False) -> regex.Pattern[str]:
    """Return a pattern for a word or phrase as a whole, in any case.

    An end of the word in a script without spaces, or in Hangul, where particles follow a noun directly, matches inside longer
    text. If `closed`, a character after any other end must show that the word cannot grow longer.
    """
    joined = rf"[{UNSPACED}\p{{Hangul}}]"
    other = rf"[\w--{joined}]"  # a letter that belongs to the same word as such a letter beside it
    before = rf"(?<!{other})" if regex.match(other, word, regex.V1) else ""
    after = (rf"(?={joined}|\W)" if closed else rf"(?!{other})") if regex.search(rf"{other}\Z", word, regex.V1) else ""
    return regex.compile(before + regex.escape(word) + after, regex.V1 | regex.IGNORECASE)

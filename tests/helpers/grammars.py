"""Grammars on the letter world, by enumeration of their words: the reference for masks and laws."""

from __future__ import annotations

import itertools
import re
from functools import cache

from cards.testing.laws import Ids, Law, Model, normalised
from helpers.letter_world import END, LETTERS, reading

LONGEST = 9  # letters of the longest word that is enumerated


@cache
def words(pattern: str) -> frozenset[str]:
    """Return the texts of a, b and c that the pattern matches."""
    texts = ("".join(letters) for n in range(LONGEST + 1) for letters in itertools.product("abc", repeat=n))
    return frozenset(text for text in texts if re.fullmatch(pattern, text))


@cache
def continues(pattern: str, text: str) -> bool:
    """Return whether a longer text than this one can match, or this one."""
    return any(word.startswith(text) for word in words(pattern))


def complete(pattern: str, ids: Ids) -> bool:
    """Return whether a response matches and no token but the end can follow."""
    text = reading(ids)
    return text in words(pattern) and not any(continues(pattern, text + letter) for letter in "abc")


def allowed(pattern: str, ids: Ids) -> list[int]:
    """Return the tokens that may follow a response."""
    text = reading(ids)
    found = [token for token, letter in enumerate(LETTERS) if token != END and continues(pattern, text + letter)]
    return found + [END] * (text in words(pattern))


def masked(model: Model, pattern: str, prompt: Ids) -> Model:
    """Return the next-token probabilities of `model` on the allowed tokens, renormalised."""

    def probabilities(ids: Ids) -> list[float]:
        kept, p = allowed(pattern, ids[len(prompt) :]), model(ids)
        total = sum(p[token] for token in kept)
        return [p[token] / total if token in kept else 0.0 for token in range(len(p))]

    return probabilities


def conditional(law: Law, pattern: str) -> Law:
    """Return the law of responses given that they are words: what masking does not sample from."""
    return normalised({ids: p for ids, p in law.items() if reading(ids) in words(pattern)})

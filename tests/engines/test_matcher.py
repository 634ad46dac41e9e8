"""The tokens that a grammar allows are those whose decoded text can continue it, for all kinds of tokenizers."""

from __future__ import annotations

import itertools
import json
import random
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers.text_tokenizers import END, KINDS, SPECIAL
from transformers import PreTrainedTokenizerFast

from cards.engines.detokenizer import Detokenizer
from cards.engines.matcher import Vocabulary, token_grammar
from cards.errors import MismatchError, MissingExtraError, SettingError
from cards.grammar import Grammar

pytest.importorskip("llguidance")
ENDS = frozenset({END})


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_those_of_the_decoded_text(kind: str) -> None:
    source = tokenizer(kind)
    vocabulary = Vocabulary(source, ENDS, len(source))
    rng = random.Random(3)
    plain = [token for token in range(len(source)) if vocabulary.tokens[token]]
    assert len(source) - len(plain) == len(SPECIAL)
    prompt = source("the cat")["input_ids"]
    for _ in range(300):
        ids = rng.choices(plain, k=rng.randint(1, 12))
        text = Detokenizer(source, prompt, ENDS)
        text.push(ids)
        assert text.finish() == b"".join(vocabulary.tokens[token] for token in ids).decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_allowed_if_and_only_if_its_text_can_continue_a_word(kind: str) -> None:
    source = tokenizer(kind)
    words = ["the cat sat", "the cat's mat", " the rain", "日本語", "日本", "да, é", "don't", "  a"]
    grammar = token_grammar(Grammar.choice(words), source, ENDS, len(source))
    data = [grammar.vocabulary.tokens[token] for token in range(len(source))]
    prefixes: list[tuple[tuple[int, ...], bytes]] = [((), b"")]
    for tokens, text in prefixes:
        allowed = grammar.allowed(tokens) if any(word.encode() != text for word in words) else None
        assert allowed is not None
        for token, piece in enumerate(data):
            fits = any(word.encode().startswith(text + piece) for word in words) if piece else False
            fits |= token == END and text.decode(errors="replace") in words
            assert allowed[token] == fits, (tokens, token)
        if len(prefixes) < 150 and not grammar.after(tokens).must_end:
            prefixes += [((*tokens, int(t)), text + data[t]) for t in np.flatnonzero(allowed) if t != END]


def test_tokens_without_a_fixed_text_are_refused() -> None:
    class Lossy:
        """Its third token doubles the one before it."""

        def decode(self, token_ids: list[int], **options: Any) -> str:
            texts = [("a", "b", "")[token] or "abc"[token_ids[i - 1]] for i, token in enumerate(token_ids)]
            return "".join(texts)

    with pytest.raises(MismatchError, match=r"Token \d of this tokenizer has no fixed text"):
        Vocabulary(Lossy(), frozenset(), 3)


def test_special_and_padding_ids_are_never_allowed() -> None:
    source = tokenizer("byte_level")
    grammar = token_grammar(Grammar.regex(r"[\s\S]*"), source, ENDS, len(source) + 7)
    allowed = grammar.allowed(())
    assert len(allowed) == len(source) + 7
    assert [token for token in (*range(len(SPECIAL)), *range(len(source), len(allowed))) if allowed[token]] == [END]


def test_a_state_depends_on_the_tokens_alone() -> None:
    """Whatever was matched before: longer and shorter responses, forks, and states that were dropped from the cache."""
    source = tokenizer("byte_level")
    schema = {"type": "object", "properties": {"a": {"enum": ["the", "then"]}, "b": {"type": "integer"}}, "required": ["a"]}
    rng, found = random.Random(1), {}
    shared = token_grammar(Grammar.json_schema(schema), source, ENDS, len(source))
    for _ in range(60):
        tokens: list[int] = []
        for _ in range(rng.randint(1, 25)):
            options = [t for t in np.flatnonzero(shared.allowed(tokens)).tolist() if t != END]
            if not options:
                break
            tokens.append(rng.choice(options))
        found[tuple(tokens)] = shared.after(tokens)
    for tokens_, state in found.items():
        vocabulary = shared.vocabulary
        vocabulary.grammars.clear()
        fresh = vocabulary.grammar(Grammar.json_schema(schema)).after(tokens_)
        assert (fresh.bits, fresh.may_end, fresh.must_end) == (state.bits, state.may_end, state.must_end)


def test_tokens_that_do_not_match_are_an_error() -> None:
    source = tokenizer("byte_level")
    grammar = token_grammar(Grammar.regex("the"), source, ENDS, len(source))
    with pytest.raises(SettingError, match="does not match the grammar"):
        grammar.after(source("cat")["input_ids"])
    grammar.after(source("the")["input_ids"])  # an error spoils no other state


def sample(grammar: Grammar, seed: int, most: int = 400) -> str | None:
    """Return a random text that the grammar allows, or None if it is longer than `most` tokens."""
    source, rng = tokenizer("byte_level"), random.Random(seed)
    tokens: list[int] = []
    made = token_grammar(grammar, source, ENDS, len(source))
    while len(tokens) < most:
        if made.after(tokens).must_end:
            break
        token = rng.choice(np.flatnonzero(made.allowed(tokens)).tolist())
        if token == END:
            break
        tokens.append(token)
    else:
        return None
    return b"".join(made.vocabulary.tokens[token] for token in tokens).decode()


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 40}}, "required": ["n"]},
    {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]},
    {"type": "object", "properties": {"at": {"type": "string", "format": "date"}}, "additionalProperties": False},
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"kids": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}},
                "required": ["kids"],
                "additionalProperties": False,
            }
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_json_follows_its_schema(schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    texts = [text for seed in range(30) if (text := sample(Grammar.json_schema(schema, whitespace=False), seed)) is not None]
    assert texts
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("pattern", [r"\d{2,3}-[a-f]+", r"(the|a) (cat|mat)s?\.", r"\w\s\w", "日本?", r"^a/b\\$"])
def test_texts_match_their_regular_expression(pattern: str) -> None:
    texts = [text for seed in range(20) if (text := sample(Grammar.regex(pattern), seed)) is not None]
    assert texts
    assert all(re.fullmatch(pattern, text) for text in texts)


def test_grammars_of_lark_and_gbnf_and_choices() -> None:
    lark = Grammar.lark('start: word (" " word)~2\nword: "a" | "b"')
    gbnf = Grammar.lark('root ::= word " " word " " word\nword ::= "a" | "b"')
    wanted = {" ".join(letters) for letters in itertools.product("ab", repeat=3)}
    for grammar in (lark, gbnf):
        assert {sample(grammar, seed) for seed in range(80)} == wanted
    assert {sample(Grammar.choice(['"x"', "\n", "é"]), seed) for seed in range(30)} == {'"x"', "\n", "é"}


def test_json_objects_and_whitespace() -> None:
    texts = [sample(Grammar.json_object(), seed) for seed in range(40)]
    assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
    assert any(text and re.search(r"\s", text) for text in texts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar.json_schema("{"), "is not JSON"),
        (lambda: Grammar.json_schema("[1]"), "must be an object or a boolean, got list"),
        (lambda: Grammar.json_schema({"type": "foo"}), "Invalid type: foo"),
        (lambda: Grammar.json_schema({"not": {}}), 'Unimplemented keys: ."not"'),
        (lambda: Grammar.json_schema({"$ref": "#/x"}), "does not exist"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "JSON cannot represent"),
        (lambda: Grammar.json_schema(False), "Unsatisfiable"),
        (lambda: Grammar.regex("[a"), "unclosed character class"),
        (lambda: Grammar.regex("(?=a)b"), "look-around"),
        (lambda: Grammar.regex(""), "must not be empty"),
        (lambda: Grammar.choice([]), "A choice needs texts"),
        (lambda: Grammar.choice([""]), "A choice needs texts"),
        (lambda: Grammar.lark("start: x"), 'line 1, column 8.: unknown name: "x"'),
        (lambda: Grammar.lark('start: "a"\nb: "c'), "line 2"),
        (lambda: Grammar.lark("root ::= y"), "Rule 'y' not found"),
    ],
)
def test_faults_are_named(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_a_missing_llguidance_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cards.errors.find_spec", lambda module: None)
    missing = pytest.raises(MissingExtraError, match=r"cards-decoding\[structured\]")
    with missing:
        Grammar.json_object()
    with missing:
        Grammar.regex("a")
    with missing:
        Grammar.lark('start: "a"')

"""Grammars over the tokens of an LM: the tokens that may follow a response, and whether it may end there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cards.errors import MismatchError, SettingError
from cards.grammar import OPTIONS, Grammar
from cards.token_bytes import all_bytes, byte_reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STATES = 512  # states kept for a grammar
GRAMMARS = 32  # grammars kept for a tokenizer
CONTEXTS = 3  # pairs of tokens after which the text of a token must be the same


@dataclass(frozen=True, slots=True)
class State:
    """The state of a grammar after some tokens. The matcher is never advanced; further states are made from copies.

    `bits` has one bit for each token, in ascending order. `may_end` says whether the response may end here, and `must_end`
    whether it must, because no token can follow.
    """

    matcher: Any
    bits: bytes
    may_end: bool
    must_end: bool


class TokenGrammar:
    """A grammar over the tokens of an LM. The state after a response is a function of its token ids; known ones are cached.

    So segments can be rejected and responses can fork at any token. All methods can be called from any thread.
    """

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        from llguidance import LLMatcher

        self.vocabulary, self._lock = vocabulary, Lock()
        self._bits: dict[bytes, bytes] = {}  # many states allow the same tokens
        self._start = self._state(LLMatcher(vocabulary.tokenizer, grammar.text + OPTIONS, log_level=0))
        self._states: OrderedDict[tuple[int, ...], State] = OrderedDict()

    def after(self, tokens: Sequence[int]) -> State:
        """Return the state after the tokens of a response, without end tokens. Raises SettingError if they do not match."""
        key = tuple(tokens)
        with self._lock:
            found = self._states.get(key) if key else self._start
            if found is None:
                known = next((n for n in range(len(key) - 1, 0, -1) if key[:n] in self._states), 0)
                matcher = (self._states[key[:known]] if known else self._start).matcher.deep_copy()
                if matcher.try_consume_tokens(list(key[known:])) < len(key) - known:
                    raise self._error(matcher, "The response does not match the grammar")
                found = self._state(matcher)
            if key:
                self._states[key] = found
                self._states.move_to_end(key)
            while len(self._states) > STATES:
                self._states.popitem(last=False)
            return found

    def allowed(self, tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Return which tokens [vocabulary] may follow the tokens of a response. Raises SettingError if none can."""
        import numpy as np

        state, vocabulary = self.after(tokens), self.vocabulary
        bits = np.frombuffer(state.bits, np.uint8)
        found = np.unpackbits(bits, count=vocabulary.size, bitorder="little").astype(bool)
        found[vocabulary.silent] = False
        if state.may_end:
            found[vocabulary.ends] = True
        if not found.any():
            raise SettingError(
                "No token of the model continues the response as the grammar wants it: the vocabulary lacks a text, or the "
                "response must end and the model has no end token."
            )
        return found

    def _state(self, matcher: Any) -> State:
        import numpy as np

        bits = matcher.compute_bitmask()
        if matcher.is_error() and not matcher.get_error().startswith("NoExtension"):  # no token of the vocabulary fits
            raise self._error(matcher, "The grammar cannot be matched")
        if len(self._bits) >= STATES:
            self._bits.clear()
        bits = self._bits.setdefault(bits, bits)
        may_end, text = bool(matcher.is_accepting()), self.vocabulary.text_bits
        must_end = may_end and not (np.frombuffer(bits, np.uint8, len(text)) & text).any()
        return State(matcher, bits, may_end, must_end)

    def _error(self, matcher: Any, what: str) -> SettingError:
        reason = " ".join(str(matcher.get_error()).split("\n", 1)[0].split())
        return SettingError(f"{what}: {reason}." if reason else f"{what}.")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The interface that llguidance expects of a tokenizer."""

    tokens: list[bytes]
    eos_token_id: int
    special_token_ids: list[int]
    bos_token_id: None = None

    def __call__(self, text: str | bytes) -> list[int]:
        """Return no tokens: texts are tokenized only for the forced tokens of llguidance, which are switched off."""
        return []


class Vocabulary:
    """The tokens of an LM for llguidance: the bytes of each token below `size`. Special tokens have no text.

    Raises MismatchError if the text of a token depends on the tokens before it.
    """

    def __init__(self, tokenizer: Any, end_ids: frozenset[int], size: int) -> None:
        import numpy as np
        from llguidance import LLTokenizer, TokenizerWrapper

        self.size, self.ends = size, [token for token in sorted(end_ids) if token < size]
        special = special_ids(tokenizer, size) | set(self.ends)
        texts = enumerate(token_texts(tokenizer, size, special))
        self.tokens = [b"" if token in special else data for token, data in texts]
        self.silent = [token for token, data in enumerate(self.tokens) if not data]
        has_text = np.ones(size, bool)
        has_text[self.silent] = False
        self.text_bits: NDArray[np.uint8] = np.packbits(has_text, bitorder="little")
        # llguidance gets an end token of its own, because the LM may have several or none
        self.tokenizer = LLTokenizer(TokenizerWrapper(Tokens([*self.tokens, b""], size, [*self.silent, size])))
        self.grammars: OrderedDict[Grammar, TokenGrammar] = OrderedDict()

    def grammar(self, grammar: Grammar) -> TokenGrammar:
        """Return a grammar over these tokens, from the most recently used ones if possible."""
        if grammar not in self.grammars:
            self.grammars[grammar] = TokenGrammar(grammar, self)
            while len(self.grammars) > GRAMMARS:
                self.grammars.popitem(last=False)
        self.grammars.move_to_end(grammar)
        return self.grammars[grammar]


_vocabularies: WeakKeyDictionary[Any, dict[tuple[frozenset[int], int], Vocabulary]] = WeakKeyDictionary()
_lock = Lock()


def token_grammar(grammar: Grammar, tokenizer: Any, end_ids: frozenset[int], size: int | None) -> TokenGrammar:
    """Return the grammar over the tokens below `size` of a tokenizer (None: all of its tokens).

    The first call for a tokenizer takes seconds if the vocabulary is large. Raises MismatchError or SettingError.
    """
    size = len(tokenizer) if size is None else size
    with _lock:
        made = _vocabularies.setdefault(tokenizer, {})
        if (end_ids, size) not in made:
            made[end_ids, size] = Vocabulary(tokenizer, end_ids, size)
        return made[end_ids, size].grammar(grammar)


def special_ids(tokenizer: Any, size: int) -> set[int]:
    """Return the ids below `size` that stand for no text: special tokens, and ids beyond the tokenizer's."""
    name = getattr(tokenizer, "convert_ids_to_tokens", str)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*getattr(tokenizer, "all_special_ids", ()), *(token for token, one in added.items() if one.special)}
    return {token for token in range(size) if token in found or name(token) is None}


def token_texts(tokenizer: Any, size: int, special: set[int]) -> Iterator[bytes]:
    """Yield the bytes that each token below `size` adds to a response, as `Detokenizer` decodes it."""
    if byte_reader(tokenizer) is not None:
        yield from all_bytes(tokenizer, size)
        return
    plain = [token for token in range(size) if token not in special]
    contexts = [[plain[i * len(plain) // CONTEXTS], plain[-1 - i * len(plain) // CONTEXTS]] for i in range(CONTEXTS)]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before = [decode(context) for context in contexts]
    for token in range(size):
        texts = {decode([*context, token]).removeprefix(text) for context, text in zip(contexts, before, strict=True)}
        if token not in special and len(texts) > 1:
            raise MismatchError(
                f"Token {token} of this tokenizer has no fixed text (it can be {sorted(texts)!r}): leave out the grammar."
            )
        yield texts.pop().encode()

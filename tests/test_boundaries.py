"""Each boundary ends segments where its definition says."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.random_models import byte_tokenizer, language_model

from cards import Decoder, Entropy, FixedLength, Punctuation, Step, Whole
from cards.backends.local.engine import TransformersEngine
from cards.boundaries import Boundary
from cards.engines.base import Ask
from cards.engines.mock import MockEngine
from cards.errors import SettingError
from cards.events import Response, Segment
from cards.methods import Vanilla

LOGITS = torch.tensor([[0.0, 1.0, -2.0, 3.5], [1.0, 1.0, 1.0, 1.0], [50.0, 0.0, 0.0, -50.0]], dtype=torch.float64)


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(x) for x in row]
    return [w / sum(weights) for w in weights]


def by_formula(measure: str, row: list[float]) -> float:
    p = softmax(row)
    if measure == "entropy":
        return -sum(x * math.log(x) for x in p)
    if measure == "mcp":
        return 1 - max(p)
    return len(row) / sum(max(x, 0) + 1 for x in row)


@pytest.mark.parametrize("measure", ["entropy", "mcp", "evidential"])
def test_uncertainty_equals_its_formula(measure: str) -> None:
    boundary = Entropy(measure=measure)  # type: ignore[arg-type]
    want = [by_formula(measure, row) for row in LOGITS.tolist()]
    assert boundary.uncertainty(LOGITS).tolist() == pytest.approx(want, abs=1e-12)
    assert boundary.uncertainty(LOGITS.float()).tolist() == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("measure", ["entropy", "mcp", "evidential"])
def test_uncertainty_rises_with_it(measure: str) -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    boundary = Entropy(measure=measure)  # type: ignore[arg-type]
    assert boundary.uncertainty(sure) < boundary.uncertainty(unsure)


def test_entropy_of_masked_logits_is_finite() -> None:
    masked = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    assert Entropy().uncertainty(masked).item() == pytest.approx(math.log(2))
    assert Entropy(measure="mcp").uncertainty(masked).item() == pytest.approx(0.5)


def test_entropy_of_half_precision_logits_is_computed_in_single_precision() -> None:
    logits = torch.linspace(-3, 3, 5000).unsqueeze(0)
    half = Entropy().uncertainty(logits.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(Entropy().uncertainty(logits.bfloat16().double()).item(), abs=1e-4)


def test_entropy_ends_at_its_threshold_not_below() -> None:
    assert Entropy(threshold=2.0).ends_before(2.0)
    assert not Entropy(threshold=2.0).ends_before(2.0 - 1e-12)


@pytest.mark.parametrize(
    ("boundary", "text", "ends"),
    [
        (Punctuation(), "Yes.", True),
        (Punctuation(), "Yes.  ", True),
        (Punctuation(), "Yes. No", False),
        (Punctuation(), "a line\n", True),
        (Punctuation(marks="|"), "Yes.", False),
        (Punctuation(marks="|"), "Yes|", True),
        (Step(), "a\n\n", True),
        (Step(), "a\n", False),
        (Step(), "a\n\nb", True),
        (Step(delimiter="##"), "a##", True),
        (FixedLength(), "Yes.\n\n", False),
        (Whole(), "Yes.\n\n", False),
    ],
)
def test_text_boundaries_end_where_they_say(boundary: Boundary, text: str, ends: bool) -> None:
    assert boundary.ends_after(text) is ends


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Entropy(minimum=0),
        lambda: FixedLength(maximum=0),
        lambda: Entropy(minimum=9, maximum=8),
        lambda: Entropy(threshold=-1.0),
        lambda: Entropy(threshold=math.nan),
        lambda: Entropy(measure="surprise"),  # type: ignore[arg-type]
    ],
)
def test_impossible_boundaries_are_refused(wrong: object) -> None:
    with pytest.raises(SettingError):
        wrong()  # type: ignore[operator]


def test_a_boundary_without_logits_has_no_uncertainty() -> None:
    with pytest.raises(TypeError, match="Whole"):
        Whole().uncertainty(LOGITS)


async def segments(engine: MockEngine | TransformersEngine, boundary: Boundary, max_tokens: int) -> list[Segment]:
    """An answer cut by the boundary."""
    response, found = Response(), list[Segment]()
    while response.finish_reason is None:
        left = max_tokens - len(response.token_ids)
        async for [segment] in engine.propose(Ask(engine.encode("a"), response, left, boundary, segment=len(found))):
            found.append(segment)
            response = response + segment
    return found


def cycle(text: str) -> MockEngine:
    """Says `text` over and over, whatever the prompt."""
    letters = sorted({*text, "a"})
    order = [letters.index(c) for c in text]
    return MockEngine(lambda ids: [float(i == order[(len(ids) - 1) % len(text)]) for i in range(len(letters))], letters)


@pytest.mark.parametrize(
    ("boundary", "pieces"),
    [
        (Whole(), ["b. c. b. c"]),
        (FixedLength(maximum=4), ["b. c", ". b.", " c"]),
        (Punctuation(), ["b.", " c.", " b.", " c"]),
        (Punctuation(minimum=3), ["b. ", "c. ", "b. ", "c"]),
        (Punctuation(maximum=2), ["b.", " c", ".", " b", ".", " c"]),
        (Step(delimiter=". "), ["b. ", "c. ", "b. ", "c"]),
        (Entropy(minimum=1, threshold=0.5), ["b. c. b. c"]),
        (Entropy(minimum=3, threshold=0.0), ["b. ", "c. ", "b. ", "c"]),
    ],
    ids=str,
)
async def test_segments_end_at_boundaries_and_join_to_the_answer(boundary: Boundary, pieces: list[str]) -> None:
    found = await segments(cycle("b. c. "), boundary, 10)
    assert [s.text for s in found] == pieces
    assert [s.finish_reason for s in found] == [None] * (len(pieces) - 1) + ["length"]


async def test_entropy_is_recorded_only_where_it_ended_the_segment() -> None:
    flat = MockEngine(lambda ids: [0.25] * 4 if len(ids) % 3 == 0 else [1.0, 0, 0, 0], "abcd")
    found = await segments(flat, Entropy(1, 8, 1.0), 7)
    assert [len(s.token_ids) for s in found] == [2, 3, 2]
    assert [s.entropy for s in found] == [pytest.approx(math.log(4)), pytest.approx(math.log(4)), None]


async def test_text_boundaries_see_text_across_tokens() -> None:
    """On a byte tokenizer a blank line is two tokens."""
    engine = TransformersEngine(language_model("gpt2", vocabulary=256, end=255), byte_tokenizer())
    newline = engine.tokenizer("\n")["input_ids"][0]
    bias = torch.zeros(256).index_fill(0, torch.tensor([newline]), 6.0)
    head = engine.model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, out: out + bias)
    found = await segments(engine, Step(maximum=40), 60)
    await engine.aclose()
    ended = [s for s in found if s.finish_reason is None and len(s.token_ids) < 40]
    assert len(ended) >= 3
    assert all(s.text.endswith("\n\n") and s.text.count("\n\n") == 1 for s in ended)


def test_greedy_text_is_the_same_however_segments_end() -> None:
    engine = MockEngine(lambda ids: [1 / (1 + (len(ids) * 7 + i) % 5) for i in range(3)], "xyz", logits=True)
    texts = {Decoder(engine, None, Vanilla(temperature=0, chunk=chunk))("x", max_tokens=12).text for chunk in (None, 1, 5, 12)}
    assert len(texts) == 1

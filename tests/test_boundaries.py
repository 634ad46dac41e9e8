"""Each boundary ends segments where its definition says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_models import byte_tokenizer, language_model
from numpy.typing import NDArray

from cards import Decoder, Entropy, FixedLength, Punctuation, Step, Whole
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.sampling import uncertainty
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
    assert uncertainty(boundary, LOGITS).tolist() == pytest.approx(want, abs=1e-12)
    assert uncertainty(boundary, LOGITS.float()).tolist() == pytest.approx(want, abs=1e-5)
    assert [boundary.uncertainty(row) for row in LOGITS.numpy()] == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("measure", ["entropy", "mcp", "evidential"])
def test_uncertainty_rises_with_it(measure: str) -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    boundary = Entropy(measure=measure)  # type: ignore[arg-type]
    assert uncertainty(boundary, sure) < uncertainty(boundary, unsure)
    assert boundary.uncertainty(sure[0].numpy()) < boundary.uncertainty(unsure[0].numpy())


def test_entropy_of_masked_logits_is_finite() -> None:
    masked = torch.tensor([[0.0, -math.inf, 0.0, -math.inf]])
    for boundary, want in ((Entropy(), math.log(2)), (Entropy(measure="mcp"), 0.5)):
        assert uncertainty(boundary, masked).item() == pytest.approx(want)
        assert boundary.uncertainty(masked[0].numpy()) == pytest.approx(want)


def test_entropy_of_half_precision_logits_is_computed_in_single_precision() -> None:
    logits = torch.linspace(-3, 3, 5000).unsqueeze(0)
    half = uncertainty(Entropy(), logits.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(uncertainty(Entropy(), logits.bfloat16().double()).item(), abs=1e-4)


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
        *((Punctuation(), f"a{mark}", True) for mark in "。！？；।؟…۔።"),  # noqa: RUF001
        *((Punctuation(), f"a{mark}", False) for mark in ",:、，"),  # noqa: RUF001
        (Punctuation(), "", False),
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
        Whole().uncertainty(LOGITS[0].numpy())
    with pytest.raises(TypeError, match="Whole"):
        uncertainty(Whole(), LOGITS)


@dataclass(frozen=True)
class Margin(Boundary):
    """A boundary of somebody else's: a segment ends where the two likeliest tokens are close."""

    reads_logits = True

    def uncertainty(self, logits: NDArray[np.floating[Any]]) -> float:
        second, first = np.sort(logits)[-2:]
        return float(second - first)

    def ends_before(self, uncertainty: float) -> bool:
        return uncertainty >= -0.5


def test_a_boundary_with_a_measure_of_its_own_gets_numpy_rows_on_any_device() -> None:
    want = [Margin().uncertainty(row) for row in LOGITS.numpy()]
    assert uncertainty(Margin(), LOGITS).tolist() == want == [-2.5, 0.0, -50.0]
    assert uncertainty(Margin(), LOGITS.bfloat16()).tolist() == want


async def test_the_transformers_engine_ends_segments_by_a_measure_of_somebody_elses() -> None:
    engine = TransformersEngine(language_model("gpt2", vocabulary=256, end=255), byte_tokenizer())
    found = await segments(engine, Margin(maximum=None), 40)
    prompt, response = engine.encode("a"), Response()
    for segment in found:
        before = response
        response = response + segment
        if segment.entropy is not None:
            [logits] = await engine.logits(prompt, response)
            assert segment.entropy == Margin().uncertainty(logits) >= -0.5
        if len(segment.token_ids) > 1:
            inside = (await engine.logits(prompt, before + replace(segment, token_ids=segment.token_ids[:-1])))[0]
            assert Margin().uncertainty(inside) < -0.5
    await engine.aclose()
    assert len(found) > 2


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

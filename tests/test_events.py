"""Events fold into results, and results go through JSON unharmed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cards import CARDS, Decoder, FixedLength, Result, Segment, Usage
from cards.engines.mock import MockEngine
from cards.events import Accepted, Done, Fallback, Fold, Proposed, Rejected, Response, Scored
from cards.methods import BestOfN


def segment(text: str, *ids: int, **more: object) -> Segment:
    return replace(Segment(text, ids), **more)  # type: ignore[arg-type]


def result_of_a_run(**options: object) -> Result:
    source = MockEngine(lambda ids: [0.4, 0.4, 0.2], ["é", "\n", "</s>"], end="</s>")
    method = CARDS(target=2.0, beta=0.5, boundary=FixedLength(maximum=3), max_rejections=4)
    return Decoder(source, lambda prompt, response: response.count("é") / 2, method)("é\n", max_tokens=9, seed=2, **options)


def test_a_response_grows_by_segments() -> None:
    grown = Response() + segment("ab", 1, 2) + segment("c", 3, finish_reason="stop")
    assert (grown.text, grown.token_ids, grown.finish_reason) == ("abc", (1, 2, 3), "stop")


def test_a_fold_keeps_accepted_and_fallback_segments_in_order() -> None:
    one, two, bad = segment("a", 1, reward=0.5), segment("b", 2, reward=1.5, finish_reason="length"), segment("x", 9, 9)
    fold = Fold(Usage(lm_decoded_tokens=4), 3, "cards")
    for event in (Proposed(0, 0, bad), Scored(0, 0, bad), Rejected(0, 0, bad), Proposed(0, 1, one), Accepted(0, 1, one)):
        fold.add(event)
    fold.add(Proposed(1, 0, two))
    fold.add(Fallback(1, 0, two))
    result = fold.result()
    assert (result.text, result.token_ids, result.reward, result.finish_reason) == ("ab", (1, 2), 1.5, "length")
    assert (result.seed, result.method) == (3, "cards")
    usage = result.usage
    assert (usage.candidates, usage.rejected, usage.accepted, usage.fallbacks, usage.lm_wasted_tokens) == (3, 1, 1, 1, 2)


def test_a_fold_of_nothing_is_an_empty_answer() -> None:
    result = Fold(Usage(), 0, "cards").result("deadline")
    assert (result.text, result.token_ids, result.segments, result.reward) == ("", (), (), None)
    assert result.finish_reason == "deadline"


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
@pytest.mark.parametrize("indent", [None, 2])
def test_json_of_a_result_gives_back_its_dict_with_the_same_names(indent: int | None) -> None:
    result = result_of_a_run(trace=True)
    assert any(s.rejected for s in result.segments)
    back = json.loads(result.to_json(indent))
    assert back == {"format": 1, **json.loads(json.dumps(result.to_dict()))}
    names = "format text token_ids segments reward finish_reason usage seed method"
    assert set(back) == set(names.split())
    assert back["text"] == result.text
    assert "é" in result.to_json()
    usage = (
        "lm_steps lm_prefill_tokens lm_decoded_tokens lm_wasted_tokens lm_cached_tokens rm_calls rm_tokens rm_cached_tokens "
    )
    usage += "rounds candidates accepted fallbacks lm_seconds rm_seconds seconds"
    assert set(back["usage"]) >= set(usage.split())
    segments = "text token_ids reward threshold entropy candidates fallback rejected"
    assert set(back["segments"][0]) >= set(segments.split())
    assert Usage(**back["usage"]) == result.usage


@pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
def test_rejected_candidates_are_kept_only_when_tracing() -> None:
    traced, plain = result_of_a_run(trace=True), result_of_a_run()
    assert all(len(s.rejected) == s.candidates - 1 for s in traced.segments)
    assert all(s.rejected == () for s in plain.segments)
    assert [replace(s, rejected=()) for s in traced.segments] == list(plain.segments)


def test_the_rejected_of_best_of_n_are_the_others() -> None:
    source = MockEngine(lambda ids: [0.5, 0.5], "ab")
    result = Decoder(source, lambda p, r: r.count("b") + 0.1, BestOfN(n=5))("a", max_tokens=6, trace=True)
    [kept] = result.segments
    assert kept.candidates == 5
    assert len(kept.rejected) == 4
    assert all((r.reward or 0) <= (kept.reward or 0) for r in kept.rejected)


def test_every_candidate_is_proposed_scored_and_judged_in_that_order() -> None:
    source = MockEngine(lambda ids: [0.5, 0.5], "ab")
    method = CARDS(target=1.0, beta=0.3, boundary=FixedLength(maximum=2), width=3)
    events = list(Decoder(source, lambda p, r: r.count("b") / 4, method).stream("a", max_tokens=8, seed=5))
    assert isinstance(events[-1], Done)
    drawn = [e for e in events if not isinstance(e, Done)]
    assert len(drawn) == len(events) - 1
    numbers = [(e.position, e.candidate) for e in drawn]
    assert numbers == sorted(numbers)
    for position, candidate in set(numbers):
        kinds = [type(e) for e in drawn if (e.position, e.candidate) == (position, candidate)]
        assert kinds in ([Proposed, Scored, Rejected], [Proposed, Scored, Accepted])
    scored = [e.segment for e in events if isinstance(e, Scored)]
    assert all(s.reward is not None and s.threshold is not None for s in scored)
    assert len({e.position for e in events[:-1] if isinstance(e, Accepted)}) == 4

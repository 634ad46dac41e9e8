"""What the page is made of: controls from settings, runs from events, and HTML from runs."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import aclosing
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import gradio as gr
import pytest
from helpers.mock_models import CARDS_IN_THREES, Hangs, assert_free, count_of_b, mock
from helpers.running_server import Switch

from cards import CARDS, Decoder
from cards.backends.local.engine import TransformersEngine
from cards.errors import SettingError
from cards.events import Accepted, Fallback, Proposed, Rejected, Scored, Segment
from cards.methods import BestOfN, Vanilla
from cards.registry import make_method, method_classes
from cards.serve.catalog import Catalog
from cards.serve.options import ServerOptions
from cards.serve.playground.controls import control, values_of, visible_settings
from cards.serve.playground.meters import figures, table_html
from cards.serve.playground.plots import plots_html, ticks
from cards.serve.playground.runs import Run
from cards.serve.playground.segments import response_html
from cards.serve.playground.view import run_html
from cards.serve.service import Entry, Service
from cards.serve.tracing import Tracing

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")


def a_run(prompt: str = "hi", decoder: Decoder | None = None, max_tokens: int = 12) -> Run:
    return Run(decoder.method.name if decoder else "cards", prompt, 0, max_tokens, decoder)


def service_of(decoder: Decoder, **options: Any) -> Service:
    entry = Entry("mock", decoder.engine, decoder.reward, decoder.method)
    return Catalog([entry], ServerOptions(**options), Tracing()).default


async def ended(run: Run, decoder: Decoder, **options: Any) -> Run:
    run.method = decoder.method.name
    async with aclosing(run.frames(service_of(decoder, **options))) as frames:
        async for _ in frames:
            pass
    return run


SERVICE = service_of(Decoder(mock(), count_of_b, CARDS_IN_THREES))


@pytest.fixture
async def run() -> Run:
    """An answer with refused candidates."""
    decoder = Decoder(mock(), count_of_b, CARDS_IN_THREES)
    return await ended(a_run(), decoder)


@pytest.mark.parametrize("name", method_classes())
def test_settings_have_controls_that_hold_their_defaults(name: str) -> None:
    method = make_method(name)
    settings = visible_settings(method)
    controls = [control(setting) for setting in settings]
    assert values_of(settings, [c.value for c in controls]) == {}
    for setting, made in zip(settings, controls, strict=True):
        if isinstance(made, gr.Slider):
            assert made.minimum <= getattr(method, setting.name) <= made.maximum
            assert make_method(name, **values_of(settings, [_moved(c, made) for c in controls]))


def _moved(one: gr.components.Component, other: gr.Slider) -> object:
    """The value of a control, of one of them with a step to the side."""
    step = -other.step if other.value == other.maximum else other.step
    return one.value + step if one is other else one.value


def test_models_and_what_a_server_keeps_to_itself_are_not_offered() -> None:
    names = {setting.name for name in method_classes() for setting in visible_settings(make_method(name))}
    assert not names & {"proposer", "guide", "guides", "aligned", "reference", "amateur", "process", "pattern"}


def test_controls_start_with_the_values_of_the_server() -> None:
    settings = visible_settings(CARDS(beta=0.25, max_rejections=99, top_k=None))
    made: dict[str, Any] = {s.name: control(s) for s in settings}
    assert (made["beta"].value, made["max_rejections"].value, made["max_rejections"].maximum) == (0.25, 99, 99)
    assert made["top_k"].value == ""


def test_values_are_those_that_were_changed() -> None:
    settings = visible_settings(CARDS())
    given = {s.name: control(s).value for s in settings}
    given |= {
        "beta": 1,
        "target": "2.5",
        "boundary": "fixed:8",
        "acceptance": "hard",
        "top_k": "",
        "width": "4",
        "min_segment": 3.0,
    }
    values = values_of(settings, list(given.values()))
    assert values == {
        "boundary": "fixed:8",
        "beta": 1.0,
        "target": 2.5,
        "acceptance": "hard",
        "top_k": None,
        "width": 4,
        "min_segment": 3,
    }


def test_a_bad_value_is_named_without_flags() -> None:
    settings = visible_settings(CARDS())
    given = ["high" if s.name == "target" else s.default_text for s in settings]
    with pytest.raises(SettingError, match=r"^target must be a number or none, got 'high'\.$"):
        values_of(settings, given)


async def test_a_run_ends_as_the_decoder_ends(run: Run) -> None:
    decoder = run.decoder
    assert decoder is not None
    result = await decoder.agenerate("hi", max_tokens=12, trace=True)
    assert run.ending == "token limit reached"
    assert run.result.text == result.text
    assert run.result.segments == result.segments
    assert run.reward == result.reward
    assert figures(run)["RM calls"] == str(result.usage.rm_calls)
    assert figures(run)["wasted"] == str(result.usage.lm_wasted_tokens) != "0"


async def test_the_answer_of_a_method_without_reward_is_graded_off_the_books() -> None:
    run = await ended(a_run(), Decoder(mock(), count_of_b, Vanilla(temperature=1.0, top_k=None)))
    assert run.result.reward is None
    assert run.reward == run.result.text.count("b") / 2
    assert run.result.usage.rm_calls == 0


@pytest.mark.parametrize("prompt", ["", "  \n"])
async def test_an_empty_prompt_is_refused_in_words(prompt: str) -> None:
    run = await ended(a_run(prompt), Decoder(mock(), count_of_b, CARDS_IN_THREES))
    assert run.ending == "failed"
    assert "prompt is empty" in run_html(run)


async def test_a_bad_setting_is_refused_in_words() -> None:
    def settings() -> dict[str, Any]:
        raise SettingError("beta must be <positive>.")

    run = a_run()
    assert [r.ending for r in [r async for r in run.frames(SERVICE, settings)]][-1] == "failed"
    assert "beta must be &lt;positive&gt;." in run_html(run)


async def test_a_mistake_of_ours_is_not_hidden() -> None:
    def settings() -> dict[str, Any]:
        raise KeyError("ours")

    run = a_run()
    with pytest.raises(KeyError, match="ours"):
        [r async for r in run.frames(SERVICE, settings)]
    assert 'data-state="ended"' in run_html(run)


async def test_stopping_keeps_what_was_accepted_and_frees_the_rows(letters: TransformersEngine) -> None:
    reward = Hangs(after=3)
    run = a_run(max_tokens=60)
    decoder = Decoder(letters, reward, CARDS(beta=1.0, max_segment=4, min_segment=4, width=2))
    async with aclosing(run.frames(service_of(decoder))) as frames:
        async for _ in frames:
            if reward.waiting.is_set() and run.task is not None and not run.task.done():
                kept = run.result.text
                run.task.cancel()
    assert (run.ending, run.result.text) == ("stopped", kept)
    assert len(run.segments) >= 1
    assert run.result.usage.lm_wasted_tokens > 0
    assert run.result.usage.seconds == run.result.usage.seconds > 0  # the clock has stopped
    await assert_free(letters)


async def test_leaving_frees_the_rows(letters: TransformersEngine) -> None:
    reward = Hangs(after=1)
    run = a_run(max_tokens=60)
    decoder = Decoder(letters, reward, CARDS(beta=1.0, max_segment=4, min_segment=4, width=2))
    async with aclosing(run.frames(service_of(decoder))) as frames:
        await anext(frames)
        await reward.waiting.wait()
    await assert_free(letters)
    assert run.task is not None
    assert run.task.done()


def folded(*events: Proposed | Scored | Rejected | Accepted | Fallback) -> Run:
    run = a_run()
    for event in events:
        run.add(event)
    return run


GOOD = Segment(" good <b>", (1, 2), 3.5, reward=1.0, threshold=0.5)
BAD = Segment(" bad & worse", (3,), 4.0, reward=-1.0, threshold=0.25)
LAST = Segment(" last", (4,), None, reward=0.0, threshold=0.25)


def test_an_open_segment_shows_every_candidate_and_its_verdict() -> None:
    taken = Segment(BAD.text, (3,), 4.0, reward=-1.0, threshold=0.25, fallback=True, rejected=(GOOD, LAST))
    html = response_html(folded(Rejected(0, 0, GOOD), Rejected(0, 1, BAD), Fallback(0, 1, taken)))
    assert re.findall(r'<tr class="(\w+)">', html) == ["fallback", "rejected", "untested"]
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert " bad &amp; worse" in html
    assert re.search(r'class="cp-seg below fallback".*<sup aria-label="fallback">', html)
    row = html[html.index('<tr class="rejected">') :]
    assert re.findall(r'data-name="(\w+)">([^<]+)<', row)[:4] == [
        ("reward", "1.00"),
        ("threshold", "0.50"),
        ("entropy", "3.50"),
        ("tokens", "2"),
    ]


def test_colour_is_the_reward_against_the_threshold() -> None:
    html = response_html(folded(Accepted(0, 0, GOOD), Accepted(1, 0, BAD), Accepted(2, 0, Segment(" plain", (5,)))))
    assert re.findall(r"cp-seg (\w+) accepted", html) == ["above", "below", "plain"]
    assert re.findall(r"--m:(\d+)", html) == ["40", "100", "0"]


def test_the_candidate_under_way_is_visible_settings() -> None:
    run = folded(Scored(0, 0, BAD), Rejected(0, 0, BAD), Scored(0, 1, GOOD))
    html = response_html(run)
    assert "good &lt;b&gt;" in html
    assert "1 rejected" in html
    run.add(Accepted(0, 1, GOOD))
    assert "rejected</span>" not in response_html(run)


def test_plots_hold_every_candidate_inside_their_frame() -> None:
    run = folded(Rejected(0, 0, BAD), Accepted(0, 1, Segment(" good", (1, 2), 3.5, reward=1.0, threshold=0.5, rejected=(BAD,))))
    run.add(Scored(1, 0, LAST))
    reward, entropy = (ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", plots_html(run)))
    assert [c.get("class") for c in reward.iter("circle")] == ["other", "other", "accepted"]
    assert [c.get("class") for c in entropy.iter("circle")] == ["other", "accepted"]
    places = [float(c.get(a, "").rstrip("%")) for c in [*reward.iter("circle"), *entropy.iter("circle")] for a in ("cx", "cy")]
    assert all(0 <= place <= 100 for place in places)
    heights = {c.get("class"): float(c.get("cy", "").rstrip("%")) for c in reward.iter("circle")}
    assert heights["accepted"] < heights["other"]  # higher rewards are higher up
    assert any(line.get("class") == "threshold" for line in reward.iter("line"))


def test_there_is_no_plot_of_nothing() -> None:
    assert plots_html(folded(Accepted(0, 0, Segment("plain", (1,))))) == ""


async def test_plots_know_target_and_entropy_threshold(run: Run) -> None:
    assert run.target == 1.5
    assert run.entropy_threshold is None  # its segments have a fixed length
    decoder = Decoder(mock(), count_of_b, CARDS(target=2.0, entropy_threshold=2.5))
    assert a_run(decoder=decoder).entropy_threshold == 2.5
    assert a_run(decoder=Decoder(mock(), count_of_b, BestOfN())).entropy_threshold is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.04), (0, 37), (-5, 1200), (2.1, 2.2), (0, 5.9)])
def test_ticks_are_few_and_round(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(low <= tick <= high for tick in found)
    assert len({round(b - a, 9) for a, b in pairwise(found)}) <= 1


async def test_the_table_has_a_row_for_each_method(run: Run) -> None:
    decoder = Decoder(mock(), count_of_b, BestOfN())
    html = table_html([run, await ended(a_run(decoder=decoder), decoder)])
    assert re.findall(r'<th scope="row">([^<]+)<', html) == ["cards", "best-of-n"]
    assert html.count("<td") == 2 * len(figures(run))
    assert table_html([]) == ""


async def test_frames_show_the_meters_while_it_runs() -> None:
    reward = Hangs(after=3)
    run = a_run()
    decoder = Decoder(mock(), reward, CARDS_IN_THREES)
    async with aclosing(run.frames(service_of(decoder))) as frames:
        async for _ in frames:
            html = run_html(run)
            assert 'data-state="running"' in html
            if reward.waiting.is_set():
                break
            await asyncio.sleep(0)
    assert int(figures(run)["kept"]) > 0


def outcome(service: Service, name: str) -> float | None:
    return service.metrics.registry.get_sample_value(
        "cards_requests_total", {"model": "mock", "method": "cards", "outcome": name}
    )


async def test_a_run_waits_for_admission_like_a_request(letters: TransformersEngine) -> None:
    service = service_of(Decoder(letters, None, Vanilla()), max_running=1, max_queue=0)
    refused, taken = (Run("vanilla", "hi", 0, 4) for _ in range(2))
    await service.gate.enter(1)
    [run async for run in refused.frames(service)]
    assert "The queue is full" in refused.error
    service.gate.leave()
    [run async for run in taken.frames(service)]
    assert (taken.error, service.gate.idle) == ("", True)


async def test_a_run_ends_at_the_deadline_of_the_server() -> None:
    run = await ended(a_run(), Decoder(mock(), Hangs(after=3), CARDS_IN_THREES), deadline=0.2)
    assert run.ending == "deadline reached"
    assert run.segments


@pytest.mark.parametrize(
    ("options", "prompt", "words"),
    [({"limit_prompt": 3}, "hello " * 9, "at most 3 tokens"), ({"limit_tokens": 11}, "hi", "at most 11")],
)
async def test_a_run_has_the_limits_of_a_request(options: dict[str, Any], prompt: str, words: str) -> None:
    run = await ended(a_run(prompt), Decoder(mock(), count_of_b, CARDS_IN_THREES), **options)
    assert run.ending == "failed"
    assert words in run.error


async def test_a_setting_has_the_limits_of_a_request() -> None:
    run = a_run()
    [r async for r in run.frames(SERVICE, lambda: {"max_rejections": 10**6})]
    assert "at most" in run.error


async def test_a_boundary_can_be_changed() -> None:
    run = a_run()
    [r async for r in run.frames(SERVICE, lambda: {"boundary": "fixed:2"})]
    assert run.error == ""
    assert {len(segment.token_ids) for segment in run.segments} == {2}


async def test_runs_are_counted_and_logged_like_requests(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cards.serve")
    service = service_of(Decoder(mock(), count_of_b, CARDS_IN_THREES))
    [run async for run in a_run().frames(service)]
    [run async for run in a_run("").frames(service)]
    lines = [record.fields for record in caplog.records if record.getMessage() == "request"]  # type: ignore[attr-defined]
    assert [(line["request"], line["outcome"], line.get("answer_tokens")) for line in lines] == [
        ("playground", "ok", 12),
        ("playground", "refused", None),
    ]
    assert outcome(service, "ok") == 1


async def test_a_stopped_run_counts_as_left() -> None:
    service = service_of(Decoder(mock(), Hangs(after=1), CARDS_IN_THREES))
    run = a_run()
    async with aclosing(run.frames(service)) as frames:
        async for _ in frames:
            if service.gate.running and run.task:
                run.task.cancel()
    assert outcome(service, "left") == 1


async def test_a_response_without_its_reward_is_marked() -> None:
    reward = Switch()
    reward.broken = True
    run = await ended(a_run(), Decoder(mock(), reward, CARDS_IN_THREES), on_reward_failure="plain")
    assert run.ending == "token limit reached"
    assert "not aligned" in run_html(run)

"""A result is drawn in notebooks with all candidates, in the colours of their verdicts, and without scripts."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from cards import CARDS, Decoder, FixedLength, Result, Segment, Usage
from cards.engines.mock import MockEngine
from cards.methods import BestOfN
from cards.methods.base import Method
from cards.trace_html import trace_html


class Nesting(HTMLParser):
    """Checks that every element is closed where it was opened, and collects the names."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(*segments: Segment) -> Result:
    ids = tuple(token for segment in segments for token in segment.token_ids)
    text = "".join(segment.text for segment in segments)
    return Result(text, ids, segments, segments[-1].reward if segments else None, "stop", Usage(), 0, "cards")


def rows(html: str) -> list[tuple[str, str]]:
    """Return the verdict and the text of each candidate."""
    return [
        (verdict, unescape(text)) for verdict, text in re.findall(r'<tr class="(\w+)">.*?<td class="text">(.*?)</td>', html)
    ]


@pytest.mark.parametrize(
    "method", [CARDS(target=2.0, beta=0.5, boundary=FixedLength(maximum=2), max_rejections=3), BestOfN(n=4)]
)
def test_every_candidate_is_there_with_its_verdict(method: Method) -> None:
    engine = MockEngine(lambda ids: [0.4, 0.4, 0.2], ["é", "b", "</s>"], end="</s>")
    decoder = Decoder(engine, lambda prompt, response: response.count("é") / 2, method)
    result = decoder("é", max_tokens=8, seed=2, trace=True)
    expected = [
        ("fallback" if kept and segment.fallback else "accepted" if kept else "rejected", candidate.text)
        for segment in result.segments
        for kept, candidate in [(True, segment), *((False, other) for other in segment.rejected)]
    ]
    assert len({verdict for verdict, _ in expected}) > 1
    assert rows(trace_html(result)) == expected


def test_segments_have_the_colour_of_their_verdict() -> None:
    html = trace_html(made(Segment("a", (1,)), Segment("b", (2,), fallback=True)))
    assert re.findall(r'<details class="(\w+)"><summary[^>]*>(\w)', html) == [("accepted", "a"), ("fallback", "b")]
    for verdict in ("accepted", "fallback"):
        assert f".{verdict} > :is(summary, th, td) {{ background: rgba(var(--{verdict})" in html


def test_text_is_escaped_and_nothing_runs_or_is_loaded() -> None:
    attack = "</td></details><script>alert(1)</script><img src=x onerror='alert(1)'>&\""
    html = trace_html(made(Segment(attack, (1,), rejected=(Segment(attack, (2,)),))))
    nesting = Nesting()
    nesting.feed(html)
    assert not nesting.open
    assert not nesting.seen & {"script", "img", "link", "iframe"}
    assert rows(html) == [("accepted", attack), ("rejected", attack)]
    assert "url(" not in html
    assert "@import" not in html


def test_a_result_without_text_and_unrecorded_candidates() -> None:
    assert "(no text)" in trace_html(made())
    assert "5 candidates (trace=True records them)" in trace_html(made(Segment("a", (1,), candidates=5)))


def test_notebooks_find_it() -> None:
    result = made(Segment("a", (1,), reward=0.5, threshold=0.25, entropy=1.125))
    assert result._repr_html_() == trace_html(result)
    assert '<td>0.50</td><td>0.25</td><td class="text">a</td><td>1.12</td><td>1</td>' in trace_html(result)

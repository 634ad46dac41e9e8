"""The page in a browser: headless Chromium, which must not ask any other host for anything."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, assert_free, serving, until

from cards import CARDS
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Prompt
from cards.methods import BestOfN, Blockwise
from cards.rewards.base import Reward

pytest.importorskip("gradio", reason="the playground needs Gradio")
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [
    pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # of Gradio's calls of pandas
]
CHROMIUM = os.environ.get("CARDS_CHROMIUM") or shutil.which("chromium")
OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --disable-quic"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *OFFLINE.split()]
WAIT = 60_000  # milliseconds; the machine may be busy
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CARDS_ALL_TESTS"):
            pytest.fail("Chromium is not installed, and all tests are wanted.")
        pytest.skip("needs Chromium: apt-get install chromium, or name its path in CARDS_CHROMIUM")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Steps(Reward):
    """Scores by the letter a, as many times as it is allowed to."""

    name = "steps"
    target = 0.0

    def __init__(self) -> None:
        self.left = 0

    async def rate(self, prompt: Prompt, responses: Any) -> list[float]:
        while self.left <= 0:
            await asyncio.sleep(0.002)
        self.left -= 1
        return [response.text.count("a") / 2 for response in responses]


@pytest.fixture(scope="module")
def tiny_page(embedded: tuple[TransformersEngine, ClassifierReward]) -> Iterator[Running]:
    """The embedded pair."""
    with serving(*embedded, CARDS(), playground=True) as running:
        yield running


@pytest.fixture(scope="module")
def stepped() -> Iterator[Running]:
    """A mock whose answers never end by themselves, and a reward that waits to be let on."""
    reward = Steps()
    with serving(mock(), reward, CARDS_IN_THREES, playground=True) as running:
        yield running
        reward.left = 10**9


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server; nothing may go wrong in it, and no other host may be asked."""
    opened: list[tuple[Page, str, list[str]]] = []

    def open_page(running: Running, width: int = 1280, height: int = 900, **look: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, **look)
        page.set_default_timeout(WAIT)
        seen: list[str] = []
        page.on("request", lambda request: seen.append(request.url))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.goto(running.url)
        expect(page.locator("#cp-panel-0").get_by_text("Settings")).to_be_visible(timeout=WAIT)
        opened.append((page, running.url, seen))
        return page

    yield open_page
    for page, url, seen in opened:
        page.close()
        assert [entry for entry in seen if not entry.startswith((url, "data:", "blob:"))] == []


def run(page: Page, prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Run").click()


def expect_state(page: Page, state: str, panel: int = 0) -> None:
    expect(page.locator(f"#cp-run-{panel} .cp-run")).to_have_attribute("data-state", state, timeout=WAIT)


def segments(page: Page, panel: int = 0) -> Any:
    return page.locator(f"#cp-run-{panel} .cp-seg > summary")


def shown_rm_calls(page: Page) -> int:
    [text] = page.locator("#cp-run-0 .cp-meters div", has_text="RM calls").all_text_contents() or ["0"]
    return int(re.sub(r"\D", "", text) or 0)


def test_type_run_and_open_a_rejected_candidate(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page)
    run(page, "Is basketball more fun to watch than tennis?")
    expect_state(page, "ended")
    answer = "".join(segments(page).all_text_contents())
    direct = tiny_page.client().chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Is basketball more fun to watch than tennis?"}],
        seed=0,
        max_tokens=64,
    )
    content = direct.choices[0].message.content
    assert content is not None
    assert answer == content.lstrip()
    rejected = page.locator("#cp-run-0 tr.rejected").first
    expect(rejected).to_be_hidden()
    segments(page).first.focus()
    page.keyboard.press("Enter")
    expect(rejected).to_be_visible()
    expect(rejected.locator("th")).to_contain_text("rejected")
    figures = dict(zip(("reward", "threshold", "entropy", "tokens"), rejected.locator("td").all_inner_texts(), strict=False))
    assert float(figures["reward"]) < float(figures["threshold"])
    assert float(figures["entropy"]) > 0
    expect(page.locator("[data-plot=reward] circle.accepted")).to_have_count(segments(page).count())
    assert page.locator("[data-plot=reward] line.threshold").count() > 0
    expect(page.locator("[data-plot=nats] line.boundary")).to_have_count(1)


def test_segments_appear_one_by_one_and_what_is_open_stays_open(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    reward = stepped.service.reward
    assert isinstance(reward, Steps)
    reward.left = 0
    run(page, "hello")
    expect_state(page, "running")
    seen, rated = [""], 0
    for _ in range(40):
        reward.left += 1
        until(partial(lambda before: shown_rm_calls(page) > before, rated))  # the page has caught up with the decoder
        rated = shown_rm_calls(page)
        text = "".join(segments(page).all_text_contents())
        if text != seen[-1]:
            assert text.startswith(seen[-1])
            seen.append(text)
            if len(seen) == 2:
                segments(page).first.click()
        if len(seen) > 4:
            break
    assert len(seen) > 4, seen
    expect(page.locator("#cp-run-0 details[open]")).to_have_count(1)
    expect(page.locator("#cp-run-0 details").first).to_have_attribute("open", "")
    page.get_by_role("button", name="Stop").click()
    expect_state(page, "ended")
    expect(page.locator("#cp-run-0 .cp-state")).to_contain_text("stopped")
    assert "".join(segments(page).all_text_contents()).startswith(seen[-1])
    assert_free(stepped)


def test_leaving_the_page_frees_the_rows(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    stepped.service.reward.left = 0  # type: ignore[union-attr]
    run(page, "hello")
    expect_state(page, "running")
    assert stepped.service.engine.requests == 1
    page.goto("about:blank")
    assert_free(stepped)


def test_two_methods_side_by_side(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page)
    page.get_by_label("Compare two methods").check()
    second = page.locator("#cp-panel-1")
    expect(second.get_by_text("Settings")).to_be_visible(timeout=WAIT)
    second.get_by_role("combobox", name="Method").click()
    page.get_by_role("option", name="best-of-n", exact=True).click()
    expect(second.get_by_text(BestOfN.summary)).to_be_visible(timeout=WAIT)
    run(page, "What makes a good film?")
    expect_state(page, "ended", 0)
    expect_state(page, "ended", 1)
    rows = page.locator("#cp-table tbody tr")
    expect(rows).to_have_count(2)
    assert rows.locator("th").all_inner_texts() == ["cards", "best-of-n"]
    for panel in range(2):
        shown = page.locator(f"#cp-run-{panel} .cp-meters dd").all_inner_texts()
        expect(rows.nth(panel).locator("td")).to_have_text(shown)
    left, right = (page.locator(f"#cp-panel-{panel}").bounding_box() for panel in range(2))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_settings_are_those_of_the_method_and_count(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page)
    page.get_by_role("combobox", name="Method").click()
    page.get_by_role("option", name="blockwise", exact=True).click()
    first = page.locator("#cp-panel-0")
    expect(first.get_by_text(Blockwise.summary)).to_be_visible(timeout=WAIT)
    first.get_by_role("button", name="Settings").click()
    first.get_by_label("number input for block").fill("3")
    first.get_by_label("number input for block").press("Tab")
    run(page, "What makes a good film?")
    expect_state(page, "ended")
    opened = page.locator("#cp-run-0 tr.accepted td[data-name=tokens]").all_text_contents()
    assert set(opened[:-1]) == {"3"}


def test_what_is_wrong_is_said_in_words(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page)
    run(page, "  ")
    expect_state(page, "failed")
    expect(page.get_by_role("alert")).to_have_text("The prompt is empty: give a text.")
    page.locator("#cp-panel-0").get_by_role("button", name="Settings").click()
    page.get_by_label(re.compile(r"^\s*target\b")).first.fill("high")
    run(page, "What makes a good film?")
    expect(page.get_by_role("alert")).to_have_text("target must be a number or none, got 'high'.", timeout=WAIT)


def test_html_in_texts_is_text(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    stepped.service.reward.left = 10**9  # type: ignore[union-attr]
    run(page, "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">")
    expect_state(page, "ended")
    page.locator("#cp-panel-0").get_by_role("button", name="Settings").click()
    page.get_by_label(re.compile(r"^\s*target\b")).first.fill("<img src=x onerror=\"document.title = 'broken'\">")
    run(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("<img src=x", timeout=WAIT)
    assert page.title() == "CARDS playground"


@pytest.mark.parametrize("look", [{"width": 390, "height": 844}, {"color_scheme": "dark"}], ids=["mobile", "dark"])
def test_it_can_be_read_on_a_phone_and_in_the_dark(tiny_page: Running, visit: Open, look: dict[str, Any]) -> None:
    page = visit(tiny_page, **look)
    run(page, "Is basketball more fun to watch than tennis?")
    expect_state(page, "ended")
    segments(page).first.click()
    expect(page.locator("#cp-run-0 tr.rejected").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for place in (".cp-seg > summary", ".cp-state", ".cp-panel tr.rejected .cp-text", ".cp-meters dt", ".cp-plot text"):
        assert page.locator(f"#cp-run-0 {place}").first.evaluate(CONTRAST) >= 4.5, place


def test_with_api_keys_the_page_asks_for_one(browser: Browser) -> None:
    with serving(mock(), Steps(), CARDS_IN_THREES, playground=True, api_keys=("first",)) as locked:
        locked.service.reward.left = 10**9  # type: ignore[union-attr]
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(locked.url)
        for key in ("wrong", "first"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Open the playground").click()
            if key == "wrong":
                expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
        expect(page.locator("#cp-panel-0").get_by_text("Settings")).to_be_visible(timeout=WAIT)
        run(page, "hello")
        expect_state(page, "ended")
        page.close()


CONTRAST = """
element => {  // of a text with what is behind it, as WCAG counts it
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
  const paint = (colour) => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); };
  const light = () => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const c = canvas.getImageData(0, 0, 1, 1).data[i] / 255;
    return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0.05);
  paint("white");
  layers.forEach(paint);
  const behind = light();
  const style = getComputedStyle(element);
  paint(element instanceof SVGElement ? style.fill : style.color);
  const text = light();
  return Math.max(text, behind) / Math.min(text, behind);
}
"""

"""The page in a browser: headless Chromium, which must not ask any other host for anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, assert_free, serving, serving_entries
from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

from cards import CARDS
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.errors import SettingError
from cards.events import Prompt
from cards.methods import Blockwise, Vanilla
from cards.rewards.base import Reward
from cards.serve.service import Entry

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
CHROMIUM = os.environ.get("CARDS_CHROMIUM") or shutil.which("chromium")
OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --disable-quic"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *OFFLINE.split()]
WAIT = 60_000  # milliseconds; the machine may be busy
PROMPT = "Is basketball more fun to watch than tennis?"
IMAGES = os.environ.get("CARDS_SCREENSHOTS")  # folder for the screenshots of the docs: docs/images
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
        self.left = 10**9

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
    """A mock whose responses never end by themselves, and a reward that can wait."""
    reward = Steps()
    with serving(mock(), reward, CARDS_IN_THREES, playground=True) as running:
        yield running
        reward.left = 10**9


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server; nothing may go wrong in it, and no other host may be asked."""
    opened: list[tuple[Page, str, list[str]]] = []

    def open_page(running: Running, width: int = 1280, height: int = 900, fragment: str = "", **look: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, **look)
        page.set_default_timeout(WAIT)
        seen: list[str] = []
        page.on("request", lambda request: seen.append(request.url))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.goto(f"{running.url}/{fragment}")
        expect(page.locator("body[data-ready]")).to_be_visible(timeout=WAIT)
        opened.append((page, running.url, seen))
        return page

    yield open_page
    for page, url, seen in opened:
        page.close()
        assert [entry for entry in seen if not entry.startswith((url, "data:", f"blob:{url}"))] == []


def run(page: Page, prompt: str) -> Locator:
    """Run a prompt, and return its first run."""
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.get_by_role("textbox", name="Prompt").press("Enter")
    return page.locator(".turn").last.locator(".run").first


def expect_state(found: Locator, state: str) -> None:
    expect(found).to_have_attribute("data-state", state, timeout=WAIT)


def ended(page: Page, prompt: str) -> Locator:
    found = run(page, prompt)
    expect_state(found, "ended")
    return found


def text_of(found: Locator) -> str:
    """Return the text of the response, without the signs of fallbacks."""
    segments = found.locator(".response").first.locator(".segment")
    text: str = segments.evaluate_all("segments => segments.map((segment) => segment.firstChild.textContent).join('')")
    return text


def look_inside(found: Locator, name: str) -> Locator:
    """Open a view of a run, and return its panel."""
    if found.locator(".inside").get_attribute("open") is None:
        found.locator(".inside > summary").click()
    found.get_by_role("tab", name=name).click()
    return found.get_by_role("tabpanel")


def events_of(running: Running, **fields: Any) -> list[dict[str, Any]]:
    """Return the trace of a request with the prompt `hello`, made without the page."""
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "seed": 0, "max_tokens": 24, "cards": {"trace": True, **fields}}
    choice = running.post("/v1/chat/completions", json=body).json()["choices"][0]
    trace: list[dict[str, Any]] = choice["cards"]["trace"]
    return trace


def test_enter_runs_the_prefilled_prompt_and_the_response_is_in_view(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page)
    prompt = page.get_by_role("textbox", name="Prompt")
    asked = prompt.input_value()
    stop, start = page.get_by_role("button", name="Stop"), page.get_by_role("button", name="Run", exact=True)
    expect(stop).to_be_disabled()
    prompt.press("Shift+Enter")
    assert prompt.input_value() == asked + "\n"
    prompt.press("Backspace")
    prompt.press("Enter")
    found = page.locator(".run")
    expect_state(found, "ended")
    expect(found.locator(".response")).to_be_in_viewport(ratio=1)
    expect(stop).to_be_disabled()
    expect(start).to_be_enabled()
    chat = tiny_page.client().chat.completions
    direct = chat.create(model="tiny", messages=[{"role": "user", "content": asked}], seed=0, max_tokens=64)
    assert text_of(found) == (direct.choices[0].message.content or "").lstrip()
    rejected = found.locator("tr.rejected").first
    expect(rejected).to_be_hidden()
    found.locator(".segment").first.focus()
    page.keyboard.press("Enter")
    expect(rejected).to_be_visible()
    names = rejected.locator("td").evaluate_all("cells => cells.map(cell => [cell.dataset.name, cell.textContent])")
    figures = {name: float(value.replace("\u2212", "-")) for name, value in names if name in ("reward", "threshold", "tokens")}
    assert figures["reward"] < figures["threshold"]
    assert figures["tokens"] >= 1


def test_segments_appear_one_by_one_and_stop_keeps_them(stepped: Running, visit: Open) -> None:
    page, reward = visit(stepped), stepped.service.reward
    assert isinstance(reward, Steps)
    reward.left = 0
    found = run(page, "hello")
    expect_state(found, "running")
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_disabled()
    shown = found.locator(".segment")
    for count in (1, 2):
        while shown.count() < count:
            reward.left += 1
            page.wait_for_timeout(20)
        if count == 1:
            shown.first.click()
    expect(found.locator(".panel")).to_be_visible()
    expect(found.locator(".meters div", has_text="kept").locator("dd")).not_to_have_text("0")
    before = text_of(found)
    page.get_by_role("button", name="Stop").click()
    expect_state(found, "stopped")
    assert text_of(found).startswith(before)
    assert_free(stepped)
    reward.left = 10**9


def test_leaving_the_page_frees_the_rows(stepped: Running, visit: Open) -> None:
    page, reward = visit(stepped), stepped.service.reward
    assert isinstance(reward, Steps)
    reward.left = 0
    expect_state(run(page, "hello"), "running")
    page.goto("about:blank")
    assert_free(stepped)
    reward.left = 10**9


def test_two_methods_side_by_side_at_the_same_cost(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    page.get_by_label("Compare two methods").check()
    expect(page.get_by_label("Second method")).to_have_value("best-of-n")
    ended(page, "hello")
    rows = page.locator(".comparison tbody tr")
    expect(rows).to_have_count(9)
    runs = page.locator(".run")
    for column in range(2):
        shown = runs.nth(column).locator(".meters dd").all_text_contents()
        assert rows.locator("td").all_text_contents()[column::2] == shown
    kept, wasted = (int(rows.nth(i).locator("td").first.inner_text()) for i in (1, 2))
    n = round((kept + wasted) / kept)
    expect(page.locator(".comparison thead th").last).to_have_text(f"best-of-n, n = {n}")
    left, right = runs.nth(0).bounding_box(), runs.nth(1).bounding_box()
    assert left is not None
    assert right is not None
    assert (left["y"], left["x"] + left["width"] <= right["x"]) == (right["y"], True)


def test_settings_are_those_of_the_method_and_a_permalink_restores_them(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    groups = page.locator("#method optgroup").evaluate_all("groups => groups.map(group => group.label)")
    assert len(groups) == len(set(groups)) >= 4
    page.get_by_label("Method", exact=True).select_option("blockwise")
    expect(page.locator("#controls").get_by_text(Blockwise.summary)).to_be_visible()
    expect(page.get_by_label("beta", exact=True)).to_have_count(0)
    page.get_by_label("block", exact=True).fill("2")
    page.get_by_label("Seed").fill("7")
    found = ended(page, "hello")
    found.locator(".segment").first.click()
    assert set(found.locator("tr.accepted td[data-name=tokens]").all_text_contents()) == {"2"}
    page.get_by_role("textbox", name="Prompt").fill("and & then?")
    other = visit(stepped, fragment=page.evaluate("location.hash"))
    expect(other.get_by_label("Method", exact=True)).to_have_value("blockwise")
    expect(other.get_by_label("block", exact=True)).to_have_value("2")
    expect(other.get_by_label("Seed")).to_have_value("7")
    expect(other.get_by_role("textbox", name="Prompt")).to_have_value("and & then?")
    expect(other.locator(".turn > .prompt p")).to_have_text("hello")
    assert other.locator(".turn .response").inner_text() == text_of(found)


def test_a_random_seed_changes_the_response(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    first = text_of(ended(page, "hello"))
    page.get_by_role("button", name="Random").click()
    assert page.get_by_label("Seed").input_value() != "0"
    page.get_by_role("button", name="New conversation").click()
    assert text_of(ended(page, "hello")) != first


def test_defaults_of_all_settings_are_read_as_the_method_has_them(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    found = page.evaluate(
        """async () => {
          const { parse } = await import("/settings.js"), offer = await (await fetch("/playground/offer")).json();
          return offer.models[0].methods.map(({ name, settings }) =>
            [name, Object.fromEntries(settings.map((one) => [one.name, parse(one, one.default)]))]);
        }"""
    )
    methods, checked = stepped.service.methods, 0
    for name, values in found:
        with suppress(SettingError):  # a default above the limits of clients, which the page does not send
            assert methods.make(name, values) == methods.make(name, {})
            checked += 1
    assert checked > 20


def test_a_conversation_goes_on_and_can_be_changed(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    bodies: list[Any] = []

    def record(request: Request) -> None:
        if request.method == "POST":
            bodies.append(json.loads(request.post_data or "{}"))

    page.on("request", record)
    first = text_of(ended(page, "abc"))
    ended(page, "more")
    messages = [(message["role"], message["content"]) for message in bodies[-1]["messages"]]
    assert messages == [("user", "abc"), ("assistant", first), ("user", "more")]
    page.locator(".turn").last.get_by_role("button", name="Regenerate").click()
    expect_state(page.locator(".turn").last.locator(".run"), "ended")
    expect(page.locator(".turn")).to_have_count(2)
    assert bodies[-1]["messages"] == bodies[-2]["messages"]
    assert bodies[-1]["seed"] != bodies[-2]["seed"]
    page.locator(".turn").first.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("textbox", name="Prompt")).to_have_value("abc")
    ended(page, "abcabc")
    expect(page.locator(".turn")).to_have_count(1)
    assert [message["content"] for message in bodies[-1]["messages"]] == ["abcabc"]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".run").get_by_role("button", name="Copy").click()
    expect(page.locator(".run").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == text_of(page.locator(".run"))


def test_what_is_wrong_is_said_in_words_and_without_meters(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    page.get_by_role("textbox", name="Prompt").fill("  ")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("The prompt is empty. Enter a text.")
    page.get_by_label("target", exact=True).fill("high")
    found = run(page, "hello")
    expect_state(found, "failed")
    expect(page.locator(".banner[role=alert]")).to_contain_text("'high'")
    expect(found.locator(".meters")).to_be_hidden()
    expect(found.locator(".inside")).to_be_hidden()


def test_fallbacks_have_a_banner(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#set.target=99&set.max_rejections=2&max_tokens=6")
    found = ended(page, "hello")
    expect(found.locator(".banner")).to_have_text(re.compile("^Fallback: in 2 of 2 segments"))
    expect(found.locator(".segment.fallback")).to_have_count(2)
    page.get_by_label("target", exact=True).fill("-99")
    found = ended(page, "hello")
    expect(found.locator(".banner")).to_be_hidden()


def test_html_in_texts_is_text(stepped: Running, visit: Open) -> None:
    page = visit(stepped)
    attack = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
    ended(page, attack)
    page.get_by_label("target", exact=True).fill("<img src=x>")
    expect_state(run(page, "hello"), "failed")
    expect(page.locator(".banner[role=alert]")).to_contain_text("<img src=x")
    other = visit(stepped, fragment="#turns=" + json.dumps([[attack, attack], "x", [1]]))
    expect(other.locator(".turn")).to_have_count(1)
    assert {page.title(), other.title()} == {"CARDS playground"}


def test_the_film_shows_each_candidate_and_ends_with_the_response(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#set.target=4&max_tokens=12")
    found = ended(page, "hello")
    panel = look_inside(found, "Film")
    caption, step = panel.locator(".caption"), panel.get_by_role("slider", name="Step")
    told = [caption.inner_text()]
    while panel.get_by_role("button", name="Next").is_enabled():
        panel.get_by_role("button", name="Next").click()
        told.append(caption.inner_text())
    assert len(told) == int(step.get_attribute("max") or 0)
    words = [re.split("[:.]", one)[1].strip() for one in told]
    assert {"scored", "rejected"} <= {*words}
    assert words[-1] in ("accepted", "used as a fallback")
    assert re.match(r"Segment 1, candidate 1: scored. Reward .*, (below|at or above) the threshold", told[0])
    assert panel.locator(".response").inner_text().replace("\u26a0\ufe0e", "") == text_of(found)
    step.press("Home")
    assert caption.inner_text() == told[0]
    panel.get_by_role("button", name="Play").click()
    expect(panel.get_by_role("button", name="Pause")).to_be_visible()
    expect(caption).to_have_text(told[1])


def test_the_tree_has_every_candidate_and_the_arrow_keys_move_in_it(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#method=smc&set.boundary=fixed:3&set.beta=0.2&max_tokens=12")
    found = ended(page, "hello")
    panel = look_inside(found, "Tree")
    proposed = 8 * 4
    expect(panel.locator(".node")).to_have_count(1 + proposed)
    expect(panel.locator(".edge.kept")).to_have_count(4)
    panel.locator(".node.root").focus()
    path = ""
    for i in range(4):
        page.keyboard.press("ArrowRight")
        expect(panel.locator(".detail")).to_contain_text(f"Segment {i + 1}")
        expect(panel.locator(".node.chosen")).to_have_class(re.compile("accepted"))
        path += panel.locator(".detail mark").inner_text()
    assert path == text_of(found)
    if IMAGES:
        panel.screenshot(path=Path(IMAGES) / "playground-tree.png")
    page.keyboard.press("ArrowLeft")
    expect(panel.locator(".detail")).to_contain_text("Segment 3")


def verdicts_of(events: list[dict[str, Any]]) -> list[tuple[int, int, bool]]:
    tested = [event for event in events if event["event"] in ("accepted", "rejected")]
    return [(event["position"], event["candidate"], event["event"] == "accepted") for event in tested]


RETEST = """async ([events, settings, target, beta]) => {
  const { fold } = await import("/run.js"), { retest, testedIn } = await import("/whatif.js");
  const results = retest(testedIn(fold(events)), settings, target, beta), first = results.findIndex(({ differs }) => differs);
  const key = ({ candidate }) => [candidate.position, candidate.candidate];
  const known = results.slice(0, first < 0 ? results.length : first + 1);
  return known.map((one) => [...key(one), one.passed, one.threshold, one.differs]);
}"""


@pytest.mark.parametrize("method", ["cards", "rejection-sampling"])
def test_moved_settings_change_the_verdicts_that_a_run_with_them_changes(stepped: Running, visit: Open, method: str) -> None:
    """The first changed verdict, and all before it, are those of a real run with the moved settings."""
    page = visit(stepped)
    given = {"temperature": 1.0, "target": 4.0, "beta": 0.5} | ({"alpha": 0.3} if method == "cards" else {})
    events = events_of(stepped, method=method, settings=given)
    changes = 0
    for target, beta in ((4.0, 0.5), (2.0, 0.5), (6.0, 0.5), (4.0, 0.1), (4.0, 2.5), (8.0, 0.05)):
        settings = {"alpha": given.get("alpha"), "kind": "soft"}
        if settings["alpha"] is None:
            del settings["alpha"]
        shown = page.evaluate(RETEST, [events, settings, target, beta])
        real = events_of(stepped, method=method, settings=given | {"target": target, "beta": beta})
        thresholds = {(e["position"], e["candidate"]): e["threshold"] for e in real if e["event"] == "scored"}
        verdicts = verdicts_of(real)
        assert [tuple(one[:3]) for one in shown] == verdicts[: len(shown)]
        assert [one[3] for one in shown] == pytest.approx([thresholds[one[0], one[1]] for one in shown])
        changes += any(one[4] for one in shown)
        if not shown[-1][4]:  # nothing changes, so the runs are the same
            assert verdicts == verdicts_of(events)
    assert changes >= 2


def test_the_sliders_show_at_once_what_changes(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#set.target=4&max_tokens=24")
    panel = look_inside(ended(page, "hello"), "What if")
    caption = panel.locator(".caption").first
    expect(caption).to_contain_text("no verdict changes")
    expect(panel.get_by_text("exact up to and including the first one that changes")).to_be_visible()
    panel.get_by_role("slider", name="Target reward r*").press("Home")
    expect(caption).to_contain_text("the first verdict to change is that of candidate")
    expect(panel.locator(".chip.differs")).to_have_count(1)
    expect(panel.locator(".chip.unknown").first).to_be_visible()
    panel.get_by_role("button", name="Reset").click()
    expect(panel.locator(".chip.differs")).to_have_count(0)


def test_a_threshold_that_follows_the_rewards_leaves_only_beta_to_move(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#set.gain=0.5&set.target=none&max_tokens=24")
    panel = look_inside(ended(page, "hello"), "What if")
    expect(panel.get_by_role("slider", name="Softness beta")).to_be_visible()
    expect(panel.get_by_role("slider", name="Target reward r*")).to_have_count(0)
    expect(panel.locator(".caption").first).to_contain_text("no verdict changes")


def test_tau_u_shows_the_recorded_boundaries_and_others(tiny_page: Running, visit: Open) -> None:
    page = visit(tiny_page, fragment="#set.entropy_threshold=3.5&seed=2&max_tokens=40")
    found = ended(page, PROMPT)
    panel = look_inside(found, "What if")
    section = panel.get_by_role("region", name="Other tau_u")
    expect(section.locator(".caption")).to_contain_text("They are those of the response.")
    expect(section.locator(".cut")).to_have_count(found.locator(".response").first.locator(".segment").count() - 1)
    assert section.locator(".cuts").inner_text() == text_of(found)
    section.get_by_role("slider").press("End")
    expect(section.locator(".cut")).to_have_count(0)
    expect(section.locator(".caption")).to_contain_text("The first boundary to change is before token")
    section.get_by_role("slider").press("Home")  # then every segment has the minimum length
    starts = section.locator(".cuts span").evaluate_all("tokens => tokens.flatMap((token, i) => token.className ? [i] : [])")
    assert starts == list(range(4, section.locator(".cuts span").count(), 4))


def test_exports_have_the_whole_run_and_need_no_server(stepped: Running, visit: Open, browser: Browser, tmp_path: Path) -> None:
    page = visit(stepped, fragment="#set.target=4&max_tokens=12")
    found = ended(page, "<b>hello</b>")
    for kind in ("JSON", "HTML"):
        with page.expect_download() as download:
            found.get_by_role("button", name=f"Export {kind}").click()
        download.value.save_as(tmp_path / f"run.{kind.lower()}")
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["format"], record["text"].lstrip()) == (1, text_of(found))
    assert record["request"]["settings"] == {"target": 4}
    assert {event["event"] for event in record["events"]} >= {"proposed", "scored", "accepted", "rejected"}
    assert record["usage"]["rm_calls"] > 0
    alone = browser.new_context(offline=True, java_script_enabled=False).new_page()
    alone.goto((tmp_path / "run.html").as_uri())
    assert text_of(alone.locator("main")) == text_of(found)
    expect(alone.locator(".prompt")).to_contain_text("<b>hello</b>")
    alone.locator("summary").first.click()
    expect(alone.locator("tr.rejected, tr.accepted").first).to_be_visible()
    embedded = re.search(r'<script type="application/json" id="trace">(.*)</script>', (tmp_path / "run.html").read_text())
    assert embedded is not None
    assert json.loads(embedded[1]) == record
    alone.context.close()


def test_all_models_of_the_server_can_be_chosen(browser: Browser, visit: Open) -> None:
    engine = mock()
    entries = [Entry("one", engine, Steps(), CARDS_IN_THREES), Entry("two", engine, None, Vanilla())]
    with serving_entries(entries, playground=True) as running:
        page = visit(running)
        page.get_by_label("Model").select_option("two")
        expect(page.get_by_label("Method", exact=True)).to_have_value("vanilla")
        found = ended(page, "hello")
        expect(found.locator("h3")).to_have_text("vanilla")
        expect(found.locator(".segment").first).to_have_class("segment plain accepted")
        page.close()


def test_with_api_keys_the_page_asks_for_one(browser: Browser) -> None:
    with serving(mock(), Steps(), CARDS_IN_THREES, playground=True, api_keys=("first",)) as locked:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(locked.url)
        for key in ("wrong", "first"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Open the playground").click()
            if key == "wrong":
                expect(page.get_by_role("alert")).to_have_text("The server does not accept this key.")
        expect(page.locator("body[data-ready]")).to_be_visible(timeout=WAIT)
        ended(page, "hello")
        page.context.clear_cookies()
        expect_state(run(page, "hello"), "failed")
        expect(page.get_by_role("alert")).to_contain_text("Reload the page")
        page.close()


def assert_accessible(page: Page, place: str) -> None:
    """Assert that axe-core finds no serious or critical violation, and that nothing is wider than the window."""
    found = Axe().run(page).response["violations"]
    bad = [(v["id"], [node["target"] for node in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")]
    assert bad == [], place
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), place


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1366, 768, "light"), (1366, 768, "dark"), (768, 1024, "light"), (390, 844, "dark")]
)
def test_it_is_accessible_at_every_width(
    tiny_page: Running, visit: Open, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    page = visit(tiny_page, width, height, color_scheme=scheme)
    folds = width < 832
    expect(page.get_by_label("Method", exact=True)).to_be_visible(visible=not folds)
    assert_accessible(page, "start")
    if folds:
        page.locator("#settings > summary").click()
        assert_accessible(page, "settings")
        page.locator("#settings > summary").click()
    page.get_by_role("button", name="Run", exact=True).click()
    found = page.locator(".run")
    expect_state(found, "ended")
    expect(found.locator(".response")).to_be_in_viewport()
    found.locator(".segment").first.click()
    folder = Path(IMAGES or tmp_path)
    page.screenshot(path=folder / f"playground-{width}-{scheme}.png")
    for name in ("Film", "Plots", "Tree", "What if"):
        panel = look_inside(found, name)
        assert_accessible(page, name)
        if IMAGES and (slider := panel.get_by_role("slider")).count():  # images in which something has happened
            for _ in range(2):
                slider.first.press("PageUp" if name == "Film" else "PageDown")
        if width == 1366 and scheme == "light" and name != "Tree":
            panel.screenshot(path=folder / f"playground-{name.lower().replace(' ', '-')}.png")
    track = page.locator("input[type=range]").first
    assert track.evaluate("element => getComputedStyle(element).colorScheme") == "light dark"


def test_everything_can_be_done_by_keyboard(stepped: Running, visit: Open) -> None:
    page = visit(stepped, fragment="#set.target=4&max_tokens=24")
    keys, focus = page.keyboard, page.locator(":focus")

    def go_to(name: str, role: str) -> None:
        """Press Tab until an element with this role and the beginning of its text or label has the focus."""
        wanted = page.locator(".run").get_by_role(role, name=re.compile(f"^{re.escape(name)}")).first  # type: ignore[arg-type]
        for _ in range(80):
            keys.press("Tab")
            if wanted.evaluate("element => element === document.activeElement"):
                return
        raise AssertionError(f"Tab does not reach {role} {name!r}.")

    keys.press("Tab")
    expect(focus).to_have_text("Skip to the prompt")
    keys.press("Enter")
    expect(focus).to_have_id("prompt")
    keys.press("Enter")
    found = page.locator(".run")
    expect_state(found, "ended")
    expect(focus).to_have_id("prompt")
    for _ in range(80):
        keys.press("Shift+Tab")
        if focus.evaluate("element => element.classList.contains('segment')"):
            break
    keys.press(" ")
    expect(found.locator(".panel")).to_be_visible()
    expect(focus).to_have_attribute("aria-expanded", "true")
    go_to("Candidates of the segment", "region")
    go_to("Copy", "button")
    for _ in range(10):
        keys.press("Tab")
        if focus.inner_text() == "Look inside":
            break
    keys.press("Enter")
    go_to("Film", "tab")
    for name in ("Plots", "Tree", "What if"):
        keys.press("ArrowRight")
        expect(focus).to_have_text(name)
        expect(focus).to_have_attribute("aria-selected", "true")
    go_to("Target reward r*", "slider")
    keys.press("Home")
    expect(found.locator(".chip.differs")).to_have_count(1)

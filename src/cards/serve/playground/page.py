"""The page: a prompt, one or two methods with their settings, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.components import Component

from cards.serve.playground.controls import DecoderOf, control, offered, shown, values_of
from cards.serve.playground.meters import table_html
from cards.serve.playground.runs import Place, Run
from cards.serve.playground.view import run_html

HERE = Path(__file__).parent
EXAMPLES = [  # of what the embedded LM can talk about
    "What did you think of the new Star Wars film?",
    "Which album should I listen to first?",
    "Is basketball more fun to watch than tennis?",
    "What makes a good film?",
]
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONOSPACED = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]
THEME = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=SYSTEM_FONTS, font_mono=MONOSPACED)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Runs = dict[int, Run]  # of a visitor, by panel


@dataclass(frozen=True)
class Shared:
    """What all panels of a page have in common."""

    decoder_of: DecoderOf
    place: Place
    methods: list[str]
    prompt: gr.Textbox
    seed: gr.Number
    most: gr.Slider
    compare: gr.Checkbox
    runs: gr.State
    table: gr.HTML


def mount_page(app: FastAPI, decoder_of: DecoderOf, place: Place) -> None:
    """In a thread with an event loop that runs: where none does Gradio makes several, leaves them open and sets one of them."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _mount(app, decoder_of, place)).result()


async def _mount(app: FastAPI, decoder_of: DecoderOf, place: Place) -> None:
    style = f"<style>{(HERE / 'style.css').read_text()}</style>"  # as css Gradio would drop container queries
    off: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "mcp_server": False}
    gr.mount_gradio_app(app, make_page(decoder_of, place), "/", theme=THEME, head=style, **off)


def make_page(decoder_of: DecoderOf, place: Place) -> gr.Blocks:
    methods = offered(decoder_of)
    decoder = decoder_of(methods[0], {})
    reward = f"reward <b>{escape(decoder.reward.name)}</b>" if decoder.reward else "no reward"
    page = gr.Blocks(title="CARDS playground", analytics_enabled=False)
    with page:
        _html(f"<h1>CARDS playground</h1><p>model <b>{escape(decoder.engine.name)}</b>, {reward}</p>", elem_id="cp-head")
        with gr.Group():
            prompt = gr.Textbox(label="Prompt", lines=2, placeholder="What is to be answered?", interactive=True)
            with gr.Row():
                seed = gr.Number(
                    0, label="Seed", info="The same seed gives the same text", precision=0, min_width=240, interactive=True
                )
                most = gr.Slider(
                    1, 256, 64, step=1, label="Max tokens", info="Most tokens of the answer", min_width=240, interactive=True
                )
        gr.Examples(EXAMPLES, prompt, label="Examples")
        compare = gr.Checkbox(label="Compare two methods on this prompt and seed")
        with gr.Row():
            run = gr.Button("Run", variant="primary", scale=0, min_width=120)
            stop = gr.Button("Stop", scale=0, min_width=120)
        table = _html(elem_id="cp-table", render=False)
        shared = Shared(decoder_of, place, methods, prompt, seed, most, compare, gr.State({}), table)
        starts = [gr.State(0), gr.State(0)]  # what panels listen to: the page forgets one of two renders that share a trigger
        with gr.Row(equal_height=False):
            panels = [_panel(shared, number, start) for number, start in enumerate(starts)]
        table.render()  # type: ignore[no-untyped-call]
        gr.on([run.click, prompt.submit], lambda *counts: [n + 1 for n in counts], starts, starts, **QUIET)
        compare.change(lambda on: gr.Column(visible=on), compare, panels[1], queue=False, **QUIET)
        stop.click(_stop, shared.runs, queue=False, **QUIET)
    return page


def _panel(shared: Shared, number: int, start: gr.State) -> gr.Column:
    """A method, its settings and its answer; all but the first take part where two are compared."""
    column = gr.Column(visible=number == 0, min_width=320, elem_id=f"cp-panel-{number}")
    with column:
        chosen = shared.methods[min(number, len(shared.methods) - 1)]
        method = gr.Dropdown(shared.methods, value=chosen, label="Method")

        @gr.render([method] if number == 0 else [method, shared.compare], queue=False)  # type: ignore[untyped-decorator]
        def settings(name: str, takes_part: bool = True) -> None:
            if takes_part:
                _settings(shared, number, name, start, output)

        output = _html(elem_id=f"cp-run-{number}", js_on_load=(HERE / "keep_open.js").read_text())
    return column


def _settings(shared: Shared, number: int, name: str, start: gr.State, output: gr.HTML) -> None:
    """Controls of a method, and what happens when it is run."""
    method = shared.decoder_of(name, {}).method
    _html(f'<p class="cp-about">{escape(method.summary)}</p>')
    settings = sorted(shown(method), key=lambda setting: setting.spec.advanced)
    folded = [setting for setting in settings if setting.spec.advanced]
    controls: list[Component] = []
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            controls += map(control, settings[: len(settings) - len(folded)])
        if folded:
            with gr.Accordion("More", open=False), gr.Row():
                controls += map(control, folded)

    async def answer(
        runs: Runs, prompt: str, seed: int, most: int, compared: bool, *given: Any
    ) -> AsyncGenerator[tuple[str, str], None]:
        run = runs[number] = Run(name, prompt, int(seed or 0), int(most))
        if not compared:
            runs.pop(1, None)
        async for _ in run.frames(lambda: shared.decoder_of(name, values_of(settings, given)), shared.place):
            yield run_html(run), table_html([runs[i] for i in sorted(runs)] if compared else [])

    inputs = [shared.runs, shared.prompt, shared.seed, shared.most, shared.compare, *controls]
    start.change(answer, inputs, [output, shared.table], concurrency_limit=None, trigger_mode="once", **QUIET)


def _html(value: str = "", **about: Any) -> gr.HTML:
    """Under our own style alone."""
    return gr.HTML(value, apply_default_css=False, elem_classes="cp-html", **about)


def _stop(runs: Runs) -> None:
    for run in runs.values():
        if run.task is not None:
            run.task.cancel()

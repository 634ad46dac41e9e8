"""The web page: a prompt, one or two methods with their settings, and their runs."""

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
from starlette.routing import Mount

from cards.registry import method_classes
from cards.serve.playground.controls import INPUT, control, values_of, visible_settings
from cards.serve.playground.guard import PlaygroundGuard
from cards.serve.playground.meters import table_html
from cards.serve.playground.runs import Run
from cards.serve.playground.view import run_html
from cards.serve.service import Service

HERE = Path(__file__).parent
EXAMPLES = [  # about topics that the embedded LM knows
    "What did you think of the new Star Wars film?",
    "Which album should I listen to first?",
    "Is basketball more fun to watch than tennis?",
    "What makes a good film?",
]
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONOSPACED = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]
THEME = gr.themes.Base(primary_hue="blue", neutral_hue="slate", radius_size="md", font=SYSTEM_FONTS, font_mono=MONOSPACED)
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Runs = dict[int, Run]  # by panel, for one visitor


@dataclass(frozen=True)
class PageContext:
    """The components and the state that all panels of a page share."""

    service: Service
    methods: list[str]
    prompt: gr.Textbox
    seed: gr.Number
    max_tokens: gr.Slider
    compare: gr.Checkbox
    runs: gr.State
    table: gr.HTML


def mount_page(app: FastAPI, service: Service) -> None:
    """Add the page to the app.

    It is built in a thread with a running event loop: without one, Gradio creates several and leaves them open.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, _mount(app, service)).result()


async def _mount(app: FastAPI, service: Service) -> None:
    style = f"<style>{(HERE / 'style.css').read_text()}</style>"  # the css option of Gradio drops container queries
    off: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "mcp_server": False}
    gr.mount_gradio_app(app, make_page(service), "/", theme=THEME, head=style, **off)
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = PlaygroundGuard(mounted.app, max(1, service.options.limit_connections // 2))


def make_page(service: Service) -> gr.Blocks:
    methods = [name for name in method_classes() if name in service.methods.offered]
    reward = f"reward <b>{escape(service.reward_name)}</b>" if service.reward_name else "no reward"
    most = min(256, service.options.limit_tokens)
    page = gr.Blocks(title="CARDS playground", analytics_enabled=False)
    with page:
        _html(f"<h1>CARDS playground</h1><p>model <b>{escape(service.name)}</b>, {reward}</p>", elem_id="cp-head")
        with gr.Group():
            prompt = gr.Textbox(label="Prompt", lines=2, placeholder="Enter a prompt.", interactive=True)
            with gr.Row():
                seed = gr.Number(0, label="Seed", info="The same seed gives the same response.", precision=0, **INPUT)
                info = "Maximum number of new tokens."
                max_tokens = gr.Slider(1, most, min(64, most), step=1, label="Max tokens", info=info, **INPUT)
        gr.Examples(EXAMPLES, prompt, label="Examples")
        compare = gr.Checkbox(label="Compare two methods on this prompt and seed")
        with gr.Row():
            run = gr.Button("Run", variant="primary", scale=0, min_width=120)
            stop = gr.Button("Stop", scale=0, min_width=120)
        table = _html(elem_id="cp-table", render=False)
        context = PageContext(service, methods, prompt, seed, max_tokens, compare, gr.State({}), table)
        starts = [gr.State(0), gr.State(0)]  # one trigger per panel: of two renders with the same trigger, Gradio drops one
        with gr.Row(equal_height=False):
            panels = [_panel(context, number, start) for number, start in enumerate(starts)]
        table.render()  # type: ignore[no-untyped-call]
        gr.on([run.click, prompt.submit], lambda *counts: [n + 1 for n in counts], starts, starts, **QUIET)
        compare.change(lambda on: gr.Column(visible=on), compare, panels[1], queue=False, **QUIET)
        stop.click(_stop, context.runs, queue=False, **QUIET)
    return page


def _panel(context: PageContext, number: int, start: gr.State) -> gr.Column:
    """Return a panel with a method, its settings and its run. The second panel is used only for comparisons."""
    column = gr.Column(visible=number == 0, min_width=320, elem_id=f"cp-panel-{number}")
    with column:
        chosen = context.methods[min(number, len(context.methods) - 1)]
        method = gr.Dropdown(context.methods, value=chosen, label="Method")

        @gr.render([method] if number == 0 else [method, context.compare], queue=False)  # type: ignore[untyped-decorator]
        def settings(name: str, active: bool = True) -> None:
            if active:
                _settings(context, number, name, start, output)

        output = _html(elem_id=f"cp-run-{number}", js_on_load=(HERE / "keep_open.js").read_text())
    return column


def _settings(context: PageContext, number: int, name: str, start: gr.State, output: gr.HTML) -> None:
    """Add the controls of a method, and run the method on each change of `start`."""
    method = context.service.methods.make(name, {})
    _html(f'<p class="cp-about">{escape(method.summary)}</p>')
    settings = sorted(visible_settings(method), key=lambda setting: setting.spec.advanced)
    advanced = [setting for setting in settings if setting.spec.advanced]
    controls: list[Component] = []
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            controls += map(control, settings[: len(settings) - len(advanced)])
        if advanced:
            with gr.Accordion("Advanced", open=False), gr.Row():
                controls += map(control, advanced)

    async def decode(
        runs: Runs, prompt: str, seed: int, max_tokens: int, compared: bool, *given: Any
    ) -> AsyncGenerator[tuple[str, str], None]:
        run = runs[number] = Run(name, prompt, int(seed or 0), int(max_tokens))
        if not compared:
            runs.pop(1, None)
        async for _ in run.frames(context.service, lambda: values_of(settings, given)):
            yield run_html(run), table_html([runs[i] for i in sorted(runs)] if compared else [])

    inputs = [context.runs, context.prompt, context.seed, context.max_tokens, context.compare, *controls]
    start.change(decode, inputs, [output, context.table], concurrency_limit=None, trigger_mode="once", **QUIET)


def _html(value: str = "", **options: Any) -> gr.HTML:
    """Return an HTML component without the default style of Gradio."""
    return gr.HTML(value, apply_default_css=False, elem_classes="cp-html", **options)


def _stop(runs: Runs) -> None:
    for run in runs.values():
        if run.task is not None:
            run.task.cancel()

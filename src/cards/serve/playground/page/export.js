// Files of a run: its trace as JSON, and a page that needs no server and no scripts.

import { spans, table } from "./candidates.js";
import { download, h } from "./dom.js";
import { plots } from "./plot.js";
import { fold } from "./run.js";
import { meters, warning } from "./view.js";

const FORMAT = 1; // version of the JSON format

const record = ({ request, text, events, outcome, usage, state, error }) => ({ format: FORMAT, request, text, state, error, outcome, usage, events });

export function saveJson(run) {
  download(`cards-${run.request.method}.json`, "application/json", JSON.stringify(record(run), null, 1));
}

export async function saveHtml(run, about) {
  const style = await (await fetch("style.css")).text();
  download(`cards-${run.request.method}.html`, "text/html", page(run, about, style));
}

function page(run, { target }, style) {
  const state = fold(run.events), { method, model, seed, settings, messages, prompt } = run.request, text = warning(run, state);
  const turns = messages ?? [{ role: "user", content: prompt }];
  const body = h("main", { class: "exported" }, h("h1", {}, `A response of ${method}`),
    h("p", { class: "soft" }, `Model ${model}, seed ${seed}, settings ${JSON.stringify(settings)}.`),
    turns.map(({ role, content }) => h("p", { class: "prompt" }, h("b", {}, `${role}: `), content)),
    h("section", { class: "run" }, text && h("p", { class: "banner" }, text), h("div", { class: "response" }, spans(state, target)), h("dl", { class: "meters" }, meters(run)),
      plots(state, target, run.outcome?.inspection ?? null), state.kept.map((segment) => h("details", {}, h("summary", {}, `Segment ${state.kept.indexOf(segment) + 1}`), table(state, segment)))));
  const data = JSON.stringify(record(run)).replaceAll("<", "\\u003c");
  return `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>A response of ${method}</title>`
    + `<style>${style}</style></head><body>${body.outerHTML}<script type="application/json" id="trace">${data}</script></body></html>\n`;
}

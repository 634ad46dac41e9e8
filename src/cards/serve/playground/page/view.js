// The view of a run: state, response, candidates of the chosen segment, costs, and what is inside.

import { legend, spans, table } from "./candidates.js";
import { action, big, copy, h, number, percent } from "./dom.js";
import { saveHtml, saveJson } from "./export.js";
import { film } from "./film.js";
import { plots } from "./plot.js";
import { fold } from "./run.js";
import { tree } from "./tree.js";
import { boundaries, testedIn, verdicts } from "./whatif.js";

const ENDINGS = { stop: "end of text", length: "token limit reached", deadline: "deadline reached", interrupted: "interrupted" };
export const FIGURES = {
  reward: "reward of the complete response; higher is better",
  kept: "tokens of the response",
  wasted: "decoded tokens that are not part of the response",
  "LM steps": "forward steps of the language model for this request",
  "RM calls": "responses scored by the reward model",
  accepted: "accepted candidates divided by accepted and rejected candidates",
  fallback: "fallback segments divided by all segments",
  FLOPs: "2 x parameters x tokens read, summed over all models",
  seconds: "seconds from the request to the last event",
};

/** Return the reward of a complete response, by its method or by the inspection. */
export const rewardOf = ({ outcome }) => outcome?.reward ?? outcome?.inspection?.reward ?? null;

/** Return the figures of a run as texts; those that are not known yet are missing. */
export function figures(run) {
  const { kept, all } = fold(run.events), usage = run.usage;
  const tokens = String(kept.reduce((sum, one) => sum + one.tokens, 0));
  const count = (verdict) => (usage ? usage[{ accepted: "accepted", rejected: "rejected", fallback: "fallbacks" }[verdict]] : all.filter((one) => one.verdict === verdict).length);
  const [accepted, rejected, fallback] = ["accepted", "rejected", "fallback"].map(count);
  const rates = all.some(({ threshold }) => threshold !== undefined) ? { accepted: percent(accepted / (accepted + rejected)), fallback: percent(fallback / (accepted + fallback)) } : { accepted: "-", fallback: "-" };
  if (!usage) return { kept: tokens, ...rates };
  return {
    reward: number(rewardOf(run)), kept: tokens, wasted: String(usage.lm_wasted_tokens), "LM steps": String(usage.lm_steps), "RM calls": String(usage.rm_calls), ...rates,
    FLOPs: big(usage.flops), seconds: number(usage.seconds),
  };
}

export const meters = (run) => Object.entries(figures(run)).map(([name, value]) => h("div", { title: FIGURES[name] }, h("dt", {}, name), h("dd", {}, value)));

/** Return the warning of a run: an error, a response without its reward, or fallbacks; null if there is none. */
export function warning(run, { kept }) {
  if (run.error) return run.error;
  if (run.outcome?.aligned === false) return `This response is not aligned: the reward failed, and plain sampling replaced the method. ${run.outcome.reason}`;
  const fallbacks = kept.filter(({ verdict }) => verdict === "fallback").length;
  if (!fallbacks) return null;
  return `Fallback: in ${fallbacks} of ${kept.length} segments no candidate passed the test, so the best one was used. A lower target reward or more candidates can avoid this.`;
}

export class RunView {
  /** `about` has target, entropy_threshold, and the settings of the acceptance test (null if the method has none). */
  constructor(run, about, actions) {
    this.run = run;
    this.about = about;
    this.open = null;
    this.shown = "";
    this.state = h("p", { class: "state", role: "status" });
    this.banner = h("p", { class: "banner", hidden: true });
    this.response = h("div", { class: "response" });
    this.panel = h("div", { class: "panel", role: "region", tabindex: 0, "aria-label": "Candidates of the segment", hidden: true });
    this.legend = h("p", { class: "legend" });
    this.meters = h("dl", { class: "meters" });
    this.actions = h("div", { class: "actions", hidden: true },
      action("Copy", "Copied", () => copy(run.text.trimStart())), actions,
      action("Export JSON", "Exported", () => saveJson(run)), action("Export HTML", "Exported", () => saveHtml(run, about)));
    this.inside = h("details", { class: "inside", hidden: true, ontoggle: () => this.inside.open && this.lookInside() }, h("summary", {}, "Look inside"));
    this.element = h("section", { class: "run", "aria-label": `Response of ${run.request.method}` }, h("h3", {}, run.request.method), this.state, this.banner, this.response,
      this.panel, this.legend, this.meters, this.actions, this.inside);
    this.update();
  }

  update() {
    const { run, about } = this, state = fold(run.events), ended = run.state !== "running";
    this.folded = state;
    this.element.dataset.state = run.state;
    const said = run.state === "running" ? "decoding" : run.state === "ended" ? ENDINGS[run.outcome.finish] : run.state;
    if (this.state.textContent !== said) this.state.textContent = said;
    const text = warning(run, state);
    this.banner.hidden = text === null;
    this.banner.setAttribute("role", run.error ? "alert" : "note");
    if (this.banner.textContent !== text) this.banner.textContent = text;
    const shown = JSON.stringify(state.kept.map(({ key, reward }) => [key, reward]));
    if (shown !== this.shown) this.redraw(state, shown);
    this.pending?.remove();
    this.pending = ended ? null : pending(state);
    if (this.pending) this.response.append(this.pending);
    if (ended && !state.kept.length && !run.error) this.response.replaceChildren(h("span", { class: "soft" }, "No text."));
    this.meters.hidden = run.state === "failed";
    this.meters.replaceChildren(...meters(run));
    this.actions.hidden = !ended;
    this.inside.hidden = !ended || !run.events.length;
    this.legend.replaceChildren(...legend(state, about.target), state.kept.length ? "Open a segment to see its candidates." : "");
  }

  redraw(state, shown) {
    const focused = document.activeElement?.closest?.(".segment"), index = this.response.contains(focused) ? focused.dataset.index : null;
    this.shown = shown;
    this.response.replaceChildren(...spans(state, this.about.target, (i) => this.toggle(i)));
    this.response.querySelector(`[data-index="${index}"]`)?.focus();
    this.showPanel();
  }

  toggle(index) {
    this.open = this.open === index ? null : index;
    this.showPanel();
  }

  showPanel() {
    const segment = this.folded.kept[this.open];
    this.response.querySelectorAll(".segment").forEach((one, i) => one.setAttribute("aria-expanded", String(i === this.open)));
    this.panel.hidden = !segment;
    this.panel.replaceChildren(...(segment ? [table(this.folded, segment)] : []));
  }

  lookInside() {
    if (this.inside.children.length > 1) return;
    const { run, about, folded } = this, inspection = run.outcome?.inspection ?? null;
    const views = { Film: () => [film(run.events, about.target)], Plots: () => plots(folded, about.target, inspection), Tree: () => [tree(folded)], "What if": () => whatIf(folded, about, inspection) };
    this.inside.append(tabs(run.request.method, views));
  }
}

function pending({ pending: candidates }) {
  const last = candidates.at(-1), rejected = candidates.filter(({ verdict }) => verdict === "rejected").length;
  return h("span", { "aria-hidden": "true" }, h("span", { class: "soft" }, last?.text ?? ""), rejected ? h("span", { class: "soft count" }, ` ${rejected} rejected`) : null, h("span", { class: "cursor" }));
}

function whatIf(folded, { test, entropy_threshold }, inspection) {
  const parts = [];
  if (test && testedIn(folded).length) parts.push(verdicts(folded, test));
  if (inspection?.entropies?.length) parts.push(boundaries(inspection, folded.kept.map(({ tokens }) => tokens), entropy_threshold));
  return parts.length ? parts : [h("p", {}, "Nothing can be moved: this run has no acceptance test, and the entropies of its tokens are not known.")];
}

let groups = 0;

/** Return tabs as in the ARIA practices: the arrow keys move between them. A view is drawn when it is opened. */
function tabs(label, views) {
  const id = `tabs-${groups++}`, panel = h("div", { role: "tabpanel", id: `${id}-panel`, tabindex: 0 });
  const buttons = Object.keys(views).map((name, i) => h("button", { type: "button", role: "tab", id: `${id}-${i}`, "aria-controls": panel.id, onclick: () => select(i), onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) select((i + step + buttons.length) % buttons.length).focus();
  } }, name));
  function select(chosen) {
    buttons.forEach((button, i) => { button.setAttribute("aria-selected", String(i === chosen)); button.tabIndex = i === chosen ? 0 : -1; });
    panel.setAttribute("aria-labelledby", buttons[chosen].id);
    panel.replaceChildren(...Object.values(views)[chosen]());
    return buttons[chosen];
  }
  select(0);
  return h("div", { class: "tabs" }, h("div", { role: "tablist", "aria-label": `Inside the response of ${label}` }, buttons), panel);
}

/** Return a table with a column for each run, which fits a phone. */
export function comparison(runs) {
  const all = runs.map(figures);
  return h("table", { class: "comparison" }, h("caption", {}, "Cost of the responses"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "figure"), runs.map((run) => h("th", { scope: "col" }, named(run))))),
    h("tbody", {}, Object.keys(FIGURES).map((name) => h("tr", {}, h("th", { scope: "row", title: FIGURES[name] }, name), all.map((one) => h("td", {}, one[name] ?? "-"))))));
}

const named = ({ request: { method, settings } }) => (settings.n ? `${method}, n = ${settings.n}` : method);

// The page: controls, conversation and runs.

import { action, copy, h } from "./dom.js";
import { decode, encode } from "./link.js";
import { Run, fold } from "./run.js";
import { MethodChoice } from "./settings.js";
import { RunView, comparison } from "./view.js";

const byId = (id) => document.getElementById(id);
const [prompt, turnsList, notice, runButton, stopButton] = ["prompt", "turns", "notice", "run", "stop"].map(byId);
const FRAME = 100; // milliseconds between two updates of a run on the page
const RIVAL = "best-of-n";

const response = await fetch("playground/offer");
if (response.status === 401) location.assign("login");
const offer = await response.json();
const models = new Map(offer.models.map((model) => [model.name, model]));

let turns = []; // each has a prompt, runs, and its element; a run of a permalink has only its text
let editing = null; // the number of the turn that the next run replaces
let running = new Set();

// Controls

const model = h("select", { id: "model", onchange: () => chooseModel() }, offer.models.map(({ name }) => h("option", {}, name)));
const modelAbout = h("p", { class: "soft" });
const first = new MethodChoice("method", "Method", remember);
const rival = new MethodChoice("rival", "Second method", remember);
const compare = h("input", { id: "compare", type: "checkbox", onchange: () => { showRival(); remember(); } });
const matched = h("input", { id: "matched", type: "checkbox", checked: true, onchange: remember });
const matchedField = h("div", { class: "field check" }, matched, h("label", { for: "matched" }, "Same cost"),
  h("span", { class: "soft" }, "Runs after the first method, with as many responses as that method decoded tokens for."));
const seed = h("input", { id: "seed", inputmode: "numeric", value: "0", oninput: remember });
const randomize = () => { seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]); remember(); };
const maxTokens = h("input", { id: "max-tokens", type: "number", min: 1, oninput: remember });
const rivalBox = h("div", {}, rival.element, matchedField);

byId("controls").append(
  h("div", { class: "field" }, h("label", { for: "model" }, "Model"), model, modelAbout),
  h("div", { class: "row" },
    h("div", { class: "field" }, h("label", { for: "seed" }, "Seed"), h("div", { class: "pair" }, seed, h("button", { type: "button", onclick: randomize }, "Random"))),
    h("div", { class: "field" }, h("label", { for: "max-tokens" }, "Max tokens"), maxTokens)),
  h("div", { class: "field check" }, compare, h("label", { for: "compare" }, "Compare two methods"), h("span", { class: "soft" }, "Both run on the same prompt and seed.")),
  first.element, rivalBox);
byId("controls").addEventListener("submit", (event) => event.preventDefault());

const current = () => models.get(model.value);

function chooseModel(given = {}) {
  const { reward, chats, max_tokens, limit_tokens, method } = current();
  modelAbout.textContent = `${reward ? `Reward ${reward}.` : "No reward."}${chats ? "" : " It has no chat template and continues the prompt."}`;
  maxTokens.max = limit_tokens;
  maxTokens.value = given.max_tokens ?? max_tokens;
  first.offer(current(), offer.families);
  rival.offer(current(), offer.families);
  first.choose(given.method ?? method, given.first);
  rival.choose(given.rivalMethod ?? RIVAL, given.rival);
  showRival();
}

function showRival() {
  rivalBox.hidden = !compare.checked;
  matchedField.hidden = rival.method.name !== RIVAL;
  document.body.classList.toggle("comparing", compare.checked);
}

// Permalinks

function state() {
  return {
    model: model.value, method: first.method.name, seed: seed.value, max_tokens: maxTokens.value, prompt: prompt.value, first: first.values,
    ...(compare.checked ? { compare: rival.method.name, matched: matched.checked ? "" : "no", rival: rival.values } : { rival: {} }),
    turns: turns.filter(({ runs }) => runs[0].text).map(({ prompt: text, runs }) => [text, ...runs.map((run) => run.text)]),
  };
}

function remember() {
  if (!rival.methods || !rival.select.value) return; // the page is being set up
  matchedField.hidden = rival.method.name !== RIVAL;
  history.replaceState(null, "", encode(state()));
}

function restore() {
  const given = decode(location.hash);
  if (models.has(given.model)) model.value = given.model;
  compare.checked = Boolean(given.compare);
  matched.checked = given.matched !== "no";
  seed.value = given.seed ?? "0";
  prompt.value = given.prompt ?? (given.turns.length ? "" : offer.examples[0]);
  chooseModel({ ...given, rivalMethod: given.compare });
  given.turns.forEach(([text, ...responses]) => addTurn({ prompt: text, runs: responses.map((one) => ({ text: one })) }));
  remember();
}

// Conversation

/** Return the messages of a column before turn number `count`, and the prompt after them. */
function messages(column, count, text) {
  const before = turns.slice(0, count).map((turn) => [turn.prompt, (turn.runs[column] ?? turn.runs[0]).text]).filter(([, one]) => one);
  return [...before.flatMap(([asked, one]) => [{ role: "user", content: asked }, { role: "assistant", content: one }]), { role: "user", content: text }];
}

function addTurn(turn) {
  turn.number = turns.length;
  turn.columns = h("div", { class: "columns" });
  turn.table = h("div", {});
  const edit = h("button", { type: "button", onclick: () => startEditing(turn) }, "Edit");
  turn.element = h("li", { class: "turn" }, h("h2", { class: "hidden" }, `Turn ${turn.number + 1}`),
    h("div", { class: "prompt" }, h("p", {}, turn.prompt), h("div", { class: "actions" }, action("Copy", "Copied", () => copy(turn.prompt), { "aria-label": "Copy prompt" }), edit)), turn.columns, turn.table);
  for (const run of turn.runs) if (!(run instanceof Run)) turn.columns.append(h("section", { class: "run" }, h("div", { class: "response" }, run.text.trimStart())));
  turns.push(turn);
  turnsList.append(turn.element);
  byId("examples").hidden = true;
}

function startEditing(turn) {
  editing = turn.number;
  prompt.value = turn.prompt;
  prompt.focus();
  say(`The next run replaces turn ${turn.number + 1} and all turns after it.`);
}

function cutTurns(count) {
  turns.splice(count).forEach(({ element }) => element.remove());
}

function say(text) {
  notice.hidden = !text;
  notice.textContent = text;
}

// Runs

function request(choice, column, text, settings = {}) {
  const chats = current().chats, about = { model: model.value, method: choice.method.name, settings: { ...choice.settings, ...settings } };
  return { ...about, seed: Number(seed.value), max_tokens: Number(maxTokens.value), ...(chats ? { messages: messages(column, turns.length, text) } : { prompt: text }) };
}

/** Return what the views of a run need to know of its method and model. */
function about(choice) {
  const real = (name) => { const text = choice.text(name); return text === undefined || text === "none" ? undefined : Number(text); };
  const tests = choice.text("acceptance") !== undefined, beta = real("beta");
  const target = real("target") ?? current().target;
  const untold = target === null && choice.text("gain") === "none" && choice.text("quantile") === "none"; // then CARDS has gain 0 and the hard test
  const gain = untold ? 0 : real("gain"), kind = untold ? "hard" : choice.text("acceptance");
  return {
    target, entropy_threshold: current().entropy_threshold,
    test: tests ? { alpha: real("alpha"), beta, gain, kind, temperature: real("temperature") ?? beta } : null,
  };
}

async function submit(text) {
  if (running.size) return;
  if (!text.trim()) return say("The prompt is empty. Enter a text.");
  if (!/^\d+$/.test(seed.value)) return say(`The seed must be a whole number, got "${seed.value}".`);
  say("");
  if (editing !== null) cutTurns(editing);
  editing = null;
  const turn = { prompt: text, runs: [] };
  const compared = compare.checked, follows = compared && matched.checked && rival.method.name === RIVAL;
  const requests = [request(first, 0, text), ...(compared ? [request(rival, 1, text)] : [])], abouts = [about(first), about(rival)];
  addTurn(turn);
  prompt.value = "";
  const begin = (column) => {
    const run = new Run(requests[column]), view = new RunView(run, abouts[column], column ? [] : [h("button", { type: "button", class: "again", onclick: () => again(turn) }, "Regenerate")]);
    turn.runs[column] = run;
    turn.columns.append(view.element);
    if (!column) turn.element.scrollIntoView({ block: "start" });
    return follow(run, view);
  };
  const started = begin(0);
  if (compared && !follows) await Promise.all([started, begin(1)]);
  else await started;
  if (follows && turn.runs[0].state === "ended") {
    requests[1].settings.n = fairCount(turn.runs[0]);
    await begin(1);
  }
  if (turn.runs.length > 1 && turn.runs.every((run) => run.state === "ended")) turn.table.append(comparison(turn.runs));
  remember();
}

/** Return how many responses cost as many decoded tokens as a run. */
function fairCount({ usage, events }) {
  const kept = fold(events).kept.reduce((sum, one) => sum + one.tokens, 0);
  return Math.max(1, Math.round((usage.lm_decoded_tokens + usage.draft_decoded_tokens) / Math.max(1, kept)));
}

async function follow(run, view) {
  running.add(run);
  showRunning();
  let drawn = 0;
  await run.start(() => {
    if (run.state === "running" && performance.now() - drawn < FRAME) return;
    drawn = performance.now();
    view.update();
  });
  running.delete(run);
  showRunning();
}

function showRunning() {
  runButton.disabled = running.size > 0;
  stopButton.disabled = running.size === 0;
  document.body.classList.toggle("running", running.size > 0);
}

/** Decode the last turn anew, with another seed. */
function again(turn) {
  if (running.size) return;
  const text = turn.prompt, draft = prompt.value;
  cutTurns(turn.number);
  randomize();
  submit(text);
  prompt.value = draft;
}

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(prompt.value); });
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(prompt.value);
});
prompt.addEventListener("input", remember);
stopButton.addEventListener("click", () => running.forEach((run) => run.stop()));
byId("clear").addEventListener("click", () => {
  running.forEach((run) => run.stop());
  cutTurns(0);
  editing = null;
  say("");
  prompt.value = offer.examples[0];
  byId("examples").hidden = false;
  prompt.focus();
  remember();
});
byId("link").replaceWith(action("Copy link", "Copied", () => { remember(); return copy(location.href); }, { id: "link" }));
byId("examples").append(...offer.examples.map((example) => h("button", { type: "button", class: "example", onclick: () => { prompt.value = example; prompt.focus(); remember(); } }, example)));

const phone = matchMedia("(max-width: 52rem)");
const foldSettings = () => { byId("settings").open = !phone.matches; };
phone.addEventListener("change", foldSettings);
foldSettings();
restore();
document.body.dataset.ready = "";

// The film: one candidate after another, each with its reward against the threshold.

import { quoted, spans, verdictOf } from "./candidates.js";
import { h, number, percent } from "./dom.js";
import { fold } from "./run.js";

const SECONDS = 0.8; // per frame

/** Return the film of a run's events. */
export function film(events, target) {
  const scored = new Set(events.filter(({ event }) => event === "scored").map(({ position, candidate }) => `${position}.${candidate}`));
  const frames = events.flatMap(({ event, position, candidate }, i) => (event === "proposed" && scored.has(`${position}.${candidate}`) ? [] : [i]));
  const values = fold(events).all.flatMap(({ reward, threshold }) => [reward, threshold]).filter((x) => x !== undefined);
  const low = Math.min(...values), high = Math.max(...values);
  const place = (x) => percent(high > low ? 0.04 + (0.92 * (x - low)) / (high - low) : 0.5);
  const response = h("p", { class: "response" }), rows = h("ol", { class: "bars" });
  const caption = h("p", { class: "caption", role: "status" });
  const slider = h("input", { type: "range", min: 1, max: frames.length, value: 1, "aria-label": "Step", oninput: () => show(Number(slider.value)) });
  const count = h("span", { class: "soft figure" });
  let timer = null;

  function pause() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function show(step) {
    const at = Math.min(frames.length, Math.max(1, step)), event = events[frames[at - 1]];
    const state = fold(events.slice(0, frames[at - 1] + 1));
    const current = state.all.find(({ position, candidate }) => position === event.position && candidate === event.candidate);
    slider.value = at;
    count.textContent = `${at} / ${frames.length}`;
    caption.textContent = told(event, current);
    const before = { ...state, kept: state.kept.filter((one) => one !== current) };
    response.replaceChildren(...spans(before, target), h("span", { class: `current ${event.event}` }, current.text));
    const shown = state.all.filter(({ position, text }) => position === event.position && text !== undefined).slice(-12);
    rows.replaceChildren(...shown.map((one) => bar(one, one === current)));
    back.disabled = at === 1;
    next.disabled = at === frames.length;
    if (next.disabled) pause();
  }

  function bar(one, current) {
    const figures = one.reward === undefined ? "no reward yet" : `reward ${number(one.reward)}${one.threshold === undefined ? "" : `, threshold ${number(one.threshold)}`}`;
    const side = one.threshold === undefined || one.reward === undefined ? "plain" : one.reward >= one.threshold ? "above" : "below";
    return h("li", { class: `${one.verdict ?? "none"}${current ? " now" : ""}` },
      h("span", { class: "sign", title: verdictOf(one)[1] }, h("span", { "aria-hidden": "true" }, verdictOf(one)[0]), h("span", { class: "hidden" }, verdictOf(one)[1])),
      h("span", { class: "text" }, quoted(one.text)),
      h("span", { class: "track" },
        one.reward === undefined ? null : h("span", { class: `mark ${side}`, style: { left: place(one.reward) } }),
        one.threshold === undefined ? null : h("span", { class: "limit", style: { left: place(one.threshold) } })),
      h("span", { class: "soft" }, figures));
  }

  const button = (label, work) => h("button", { type: "button", onclick: work }, label);
  const back = button("Back", () => { pause(); show(Number(slider.value) - 1); });
  const next = button("Next", () => { pause(); show(Number(slider.value) + 1); });
  const play = button("Play", () => {
    if (timer) return pause();
    if (Number(slider.value) === frames.length) show(1);
    play.textContent = "Pause";
    timer = setInterval(() => (play.isConnected ? show(Number(slider.value) + 1) : pause()), 1000 * SECONDS);
  });
  show(1);
  return h("div", { class: "film" }, h("div", { class: "actions" }, back, play, next, slider, count), caption, response, rows,
    h("p", { class: "legend" }, h("span", { class: "key" }, h("i", { class: "dot" }), "reward"), h("span", { class: "key" }, h("i", { class: "tick" }), "threshold")));
}

function told(event, { position, candidate, reward, threshold }) {
  const name = `Segment ${position + 1}, candidate ${candidate + 1}`;
  const against = threshold === undefined ? "" : reward >= threshold ? `, at or above the threshold ${number(threshold)}` : `, below the threshold ${number(threshold)}`;
  const figures = reward === undefined ? "" : ` Reward ${number(reward)}${against}.`;
  return `${name}: ${{ proposed: "drawn", scored: "scored", rejected: "rejected", accepted: "accepted", fallback: "used as a fallback" }[event.event]}.${figures}`;
}

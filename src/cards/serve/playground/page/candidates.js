// The response as coloured segments, and tables of candidates.

import { h, number } from "./dom.js";
import { margin, rivals } from "./run.js";

export const VERDICTS = {
  accepted: ["\u2713", "accepted"],
  fallback: ["\u26A0\uFE0E", "fallback"],
  rejected: ["\u2715", "rejected"],
  none: ["\u2013", "no verdict"],
};

export const verdictOf = ({ verdict }) => VERDICTS[verdict ?? "none"];
export const quoted = (text) => JSON.stringify(text ?? "").slice(1, -1).replaceAll('\\"', '"');

/** Return the class of a segment: above or below its threshold, or plain; and the strength of its colour in percent. */
export function colour(segment, target, scale) {
  const distance = margin(segment, target);
  return { side: distance === null ? "plain" : distance >= 0 ? "above" : "below", strength: Math.round((100 * Math.abs(distance ?? 0)) / scale) };
}

/** Return the largest absolute margin, which gets the full colour. */
export function largest(candidates, target) {
  return Math.max(0, ...candidates.map((one) => Math.abs(margin(one, target) ?? 0))) || 1;
}

/** Return the spans of kept segments. Those with an `open` function are buttons in the text. */
export function spans({ all, kept }, target, open = null) {
  const scale = largest(all, target);
  return kept.map((segment, index) => {
    const { side, strength } = colour(segment, target, scale);
    const text = index ? segment.text : segment.text.trimStart(); // after some chat templates it starts with white space
    const hint = ["reward", "threshold", "entropy"].filter((name) => segment[name] !== undefined).map((name) => `${name} ${number(segment[name])}`);
    const properties = open && { role: "button", tabindex: 0, "aria-expanded": "false", "data-index": index, onclick: () => open(index), onkeydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open(index);
    } };
    return h("span", { class: `segment ${side} ${segment.verdict}`, style: { "--m": strength }, title: hint.join(", ") || segment.verdict, ...properties },
      text || h("i", {}, "no text"), segment.verdict === "fallback" ? h("sup", { "aria-label": "fallback", role: "img" }, VERDICTS.fallback[0]) : null);
  });
}

/** Return the candidates for a segment as a table that folds on narrow screens. */
export function table(state, segment) {
  const others = rivals(state, segment).filter((one) => one !== segment);
  const names = ["reward", "threshold", "entropy", "tokens"];
  const row = (one) => h("tr", { class: one.verdict ?? "none", role: "row" },
    h("th", { scope: "row", role: "rowheader" }, h("span", { "aria-hidden": "true" }, verdictOf(one)[0]), ` ${verdictOf(one)[1]}`),
    names.map((name) => h("td", { role: "cell", class: "figure", "data-name": name }, name === "tokens" ? one.tokens : number(one[name]))),
    h("td", { role: "cell", class: "text" }, quoted(one.text)));
  const count = `${others.length} other candidate${others.length === 1 ? "" : "s"}`;
  return h("table", { role: "table", class: "candidates" },
    h("caption", {}, `Segment ${state.kept.indexOf(segment) + 1}: ${others.length ? count : "the only candidate"}`),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ["verdict", ...names, "text"].map((name) => h("th", { scope: "col", role: "columnheader" }, name)))),
    h("tbody", { role: "rowgroup" }, [segment, ...others].map(row)));
}

/** Return the key to the colours. */
export function legend(state, target) {
  if (!state.kept.some((segment) => margin(segment, target) !== null)) return [];
  const scale = number(largest(state.all, target));
  const reference = state.kept.some(({ threshold }) => threshold !== undefined) ? "threshold" : "target reward r*";
  return [h("span", { class: "key" }, `\u2212${scale}`, h("i", { class: "ramp" }), `+${scale} reward minus ${reference}`)];
}


// Plots as SVG in percent coordinates, so that text keeps its size.

import { h, number, s, ticks } from "./dom.js";

/**
 * Return a figure. `lines` have a style, a label and points; `marks` have x, y, style and hint. Styles are CSS classes.
 */
export function plot(title, unit, marks, lines) {
  const right = Math.max(1, ...marks.map(({ x }) => x), ...lines.flatMap(({ points }) => points.map(([x]) => x))) * 1.04;
  const ys = [...marks.map(({ y }) => y), ...lines.flatMap(({ points }) => points.map(([, y]) => y))];
  const pad = 0.08 * (Math.max(...ys) - Math.min(...ys)) || 0.5;
  const low = Math.min(...ys) - pad, high = Math.max(...ys) + pad;
  const xOf = (x) => `${((100 * Math.min(x, right)) / right).toFixed(2)}%`;
  const yOf = (y) => `${((100 * (high - y)) / (high - low)).toFixed(2)}%`;
  const line = (style, [[x1, y1], [x2, y2]]) => s("line", { class: style, x1: xOf(x1), y1: yOf(y1), x2: xOf(x2), y2: yOf(y2) });
  const path = (style, points) => points.slice(1).map((point, i) => line(style, [points[i], point]));
  const drawing = s("svg", { role: "img", "aria-label": `${title}: ${described(marks)}` },
    ticks(low, high).map((y) => [line("grid", [[0, y], [right, y]]), s("text", { class: "y", x: 0, y: yOf(y), dx: -8, dy: 4 }, y)]).flat(),
    ticks(0, right).map((x) => s("text", { class: "x", x: xOf(x), y: "100%", dy: 18 }, x)),
    lines.map(({ style, points }) => path(style, points)).flat(),
    marks.map(({ x, y, style, hint }) =>
      s("circle", { class: style, cx: xOf(x), cy: yOf(y), r: style === "other" ? 3 : 5 }, s("title", {}, `${hint}, ${x} tokens`))));
  const keys = lines.filter(({ label }) => label).map(({ style, label }) => h("span", { class: "key" }, h("i", { class: style }), label));
  const others = marks.some(({ style }) => style === "other") ? h("span", { class: "key" }, h("i", { class: "other" }), "other candidates") : null;
  return h("figure", { class: "plot", "data-plot": unit }, h("figcaption", {}, title), drawing,
    h("p", { class: "legend" }, `${unit} over tokens`, keys, others));
}

function described(marks) {
  const kept = marks.filter(({ style }) => style !== "other");
  return kept.map(({ x, y }) => `${number(y)} at token ${x}`).join(", ") || "no segment yet";
}

/** Return the plots of a run: its rewards and thresholds, and the entropy of each token. */
export function plots({ all, kept }, target, inspection) {
  const style = (one) => (one.verdict === "accepted" || one.verdict === "fallback" ? one.verdict : "other");
  const scored = all.filter(({ reward }) => reward !== undefined).sort((a, b) => (style(a) !== "other") - (style(b) !== "other"));
  const marks = scored.map((one) => ({ x: one.start + one.tokens, y: one.reward, style: style(one), hint: `reward ${number(one.reward)}` }));
  const rising = scored.filter((one) => one.threshold !== undefined).map((one) => [one.start + one.tokens, one.threshold]).sort((a, b) => a[0] - b[0]);
  const path = kept.filter(({ reward }) => reward !== undefined).map((one) => [one.start + one.tokens, one.reward]);
  const lines = [{ style: "threshold", label: rising.length ? "threshold" : "", points: rising }, { style: "path", label: path.length > 1 ? "kept" : "", points: path }];
  const end = Math.max(0, ...marks.map(({ x }) => x));
  if (target !== null) lines.push({ style: "target", label: "target reward r*", points: [[0, target], [end, target]] });
  const found = marks.length ? [plot("Reward along the response", "reward", marks, lines)] : [];
  return inspection?.entropies?.length ? [...found, entropies(inspection.entropies, inspection.rule?.threshold ?? null)] : found;
}

/** Return the plot of the entropy of each token, with tau_u. */
export function entropies(values, threshold) {
  const marks = values.map((y, x) => ({ x, y, style: threshold !== null && y >= threshold ? "fallback" : "other", hint: `entropy ${number(y)}` }));
  const end = values.length - 1;
  const lines = [{ style: "path thin", label: "", points: values.map((y, x) => [x, y]) }];
  if (threshold !== null) lines.push({ style: "target", label: "entropy threshold tau_u", points: [[0, threshold], [end, threshold]] });
  return plot("Entropy of each token", "nats", marks.filter(({ style }) => style !== "other"), lines);
}

// What other settings would have decided on the candidates and tokens that were recorded.

import { quoted, VERDICTS } from "./candidates.js";
import { h, number } from "./dom.js";
import { entropies } from "./plot.js";

/** Return the threshold of CARDS after a number of response tokens, as `Schedule` does. */
export const thresholdAt = ({ target, floor, length }, tokens) => Math.min(target, floor + (tokens * (target - floor)) / length);

/** Return whether a candidate passes the test, as `Verdict` does. */
export function passes(reward, threshold, u, beta, kind) {
  if (kind === "hard" || reward >= threshold) return reward >= threshold;
  return u === 0 || Math.log(u) < (reward - threshold) / beta;
}

/** Return the schedule with another target reward. `alpha` is undefined for a constant threshold. */
export function retarget({ target, floor, length }, alpha, moved) {
  if (alpha === undefined || alpha >= 1) return { target: moved, floor: moved, length };
  const promptReward = (floor - alpha * target) / (1 - alpha);
  return { target: moved, floor: (1 - alpha) * promptReward + alpha * moved, length };
}

/** Return whether the recorded thresholds follow from the target reward, so that it can be moved. */
export const movable = (candidates, { gain }) =>
  gain === undefined && candidates.every((one) => Math.abs(thresholdAt(one.schedule, one.start + one.tokens) - one.threshold) < 1e-6);

/**
 * Return the tested candidates in order, each with its verdict under other settings; all after the first change are unknown.
 * A target of null leaves the thresholds as they are.
 */
export function retest(candidates, { alpha, kind }, target, beta) {
  let changed = false;
  return candidates.map((candidate) => {
    const threshold = target === null ? candidate.threshold : thresholdAt(retarget(candidate.schedule, alpha, target), candidate.start + candidate.tokens);
    const passed = passes(candidate.reward, threshold, candidate.u, beta, kind);
    const differs = passed !== (candidate.verdict === "accepted"), known = !changed;
    changed ||= differs;
    return { candidate, threshold, passed, known, differs: known && differs };
  });
}

/** Return the candidates of which the random number of the test is recorded, in order. */
export const testedIn = ({ all }) => all.filter(({ u, verdict }) => u !== undefined && verdict !== null);

/** Return the lengths of the segments that an entropy threshold cuts a recorded response into, as `Entropy` does. */
export function cuts(values, { threshold, minimum, maximum }) {
  const lengths = [];
  let length = 0;
  values.forEach((value) => {
    if (length && ((length >= minimum && value >= threshold) || length === maximum)) {
      lengths.push(length);
      length = 0;
    }
    length += 1;
  });
  return length ? [...lengths, length] : lengths;
}

/** Return a slider with a number beside it. */
function dial(label, low, high, value, step, changed) {
  const output = h("output", {}, number(value));
  const slider = h("input", { type: "range", min: low, max: high, step, "aria-label": label, oninput: () => {
    output.textContent = number(Number(slider.value));
    changed();
  } });
  slider.value = value;
  return { slider, element: h("label", { class: "dial" }, h("span", {}, label), slider, output) };
}

/** Return the place to move r* and beta. `settings` has alpha, beta, gain, kind and temperature of the recorded run. */
export function verdicts(state, settings) {
  const tested = testedIn(state);
  const { target } = tested[0].schedule, rewards = tested.map(({ reward }) => reward);
  const low = Math.min(target, ...rewards), high = Math.max(target, ...rewards), pad = 0.2 * (high - low) || 1;
  const told = h("p", { class: "caption", role: "status" }), list = h("ol", { class: "verdicts" });
  const update = () => {
    const moved = star && Number(star.slider.value), beta = Number(softness.slider.value), given = `With ${star ? `r* = ${number(moved)} and ` : ""}beta = ${number(beta)}`;
    const results = retest(tested, settings, moved, beta), first = results.find(({ differs }) => differs);
    told.textContent = first
      ? `${given}, the first verdict to change is that of candidate ${first.candidate.candidate + 1} of segment ${first.candidate.position + 1}: `
        + `${first.candidate.verdict === "accepted" ? "rejected" : "accepted"} instead of ${first.candidate.verdict === "accepted" ? "accepted" : "rejected"}. All that follows would be decoded anew, so it is unknown.`
      : `${given}, no verdict changes. The response stays the same.`;
    const positions = Object.values(Object.groupBy(results, ({ candidate }) => candidate.position));
    list.replaceChildren(...positions.map((group) => h("li", {}, h("span", { class: "soft" }, `Segment ${group[0].candidate.position + 1}`), group.map(chip))));
  };
  const star = movable(tested, settings) ? dial("Target reward r*", low - pad, high + pad, target, "any", update) : null;
  const softness = dial("Softness beta", Math.min(0.05, settings.beta), Math.max(3, settings.beta), settings.beta, "any", update);
  const reset = h("button", { type: "button", onclick: () => {
    [[softness, settings.beta], ...(star ? [[star, target]] : [])].forEach(([one, value]) => {
      one.slider.value = value;
      one.slider.dispatchEvent(new Event("input"));
    });
    update();
  } }, "Reset");
  update();
  return h("section", { "aria-label": "Other r* and beta" }, h("h4", {}, star ? "Move r* and beta" : "Move beta"), star?.element ?? "", softness.element, h("div", { class: "actions" }, reset), told, list,
    h("p", { class: "soft" }, `The verdicts are exact up to and including the first one that changes. The candidates stay those that were drawn, at temperature ${number(settings.temperature)}.`));
}

function chip({ candidate, threshold, passed, known, differs }) {
  const [sign, word] = known ? VERDICTS[passed ? "accepted" : "rejected"] : ["?", "unknown"];
  const figures = `reward ${number(candidate.reward)}, threshold ${number(threshold)}`;
  return h("span", { class: `chip ${word}${differs ? " differs" : ""}`, title: `${quoted(candidate.text)} \u2013 ${figures}` },
    h("span", { "aria-hidden": "true" }, sign), h("span", { class: "hidden" }, `candidate ${candidate.candidate + 1} ${word}${differs ? ", changed" : ""}`), ` ${number(candidate.reward)}`);
}

/** Return the place to move tau_u. `recorded` has the lengths of the kept segments; `rule` is that of the method or of CARDS. */
export function boundaries({ tokens, entropies: values, rule }, recorded, suggested) {
  const used = rule ?? { threshold: suggested, minimum: 4, maximum: 64, measure: "entropy" };
  const text = h("p", { class: "response cuts" }), told = h("p", { class: "caption", role: "status" }), figure = h("div");
  const update = () => {
    const threshold = Number(tau.slider.value), lengths = cuts(values, { ...used, threshold });
    const ends = new Set(ending(lengths)), before = new Set(ending(recorded)), at = values.findIndex((_, i) => ends.has(i) !== before.has(i));
    const [shortest, longest] = [Math.min(...lengths), Math.max(...lengths)], change = at < 0 ? "They are those of the response." : `The first boundary to change is before token ${at + 1}.`;
    told.textContent = `At tau_u = ${number(threshold)}, this text has ${lengths.length} segment${lengths.length === 1 ? "" : "s"} of ${shortest === longest ? "" : `${shortest} to `}${longest} tokens. `
      + (rule ? change : "This method does not end segments by entropy: the boundaries are those of CARDS.");
    text.replaceChildren(...tokens.map((token, i) => h("span", { class: ends.has(i) ? "cut" : "", title: `entropy ${number(values[i])}`, style: { "--m": Math.round(Math.min(100, (100 * values[i]) / 6)) } }, i ? token : token.trimStart())));
    figure.replaceChildren(entropies(values, threshold));
  };
  const tau = dial("Entropy threshold tau_u", 0, Math.max(used.threshold, ...values) * 1.05, used.threshold, "any", update);
  update();
  return h("section", { "aria-label": "Other tau_u" }, h("h4", {}, "Move tau_u"), tau.element, told, text,
    h("p", { class: "soft" }, "These are the boundaries of this text. A run with this tau_u also cuts the rejected candidates elsewhere, so it can keep another text."), figure);
}

/** Return the numbers of the tokens at which segments of these lengths begin, without the first. */
function ending(lengths) {
  let end = 0;
  return lengths.slice(0, -1).map((length) => (end += length));
}

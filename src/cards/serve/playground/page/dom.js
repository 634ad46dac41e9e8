// Elements, downloads and numbers as text.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element. Properties that start with "on" are listeners; null and false leave an attribute out. */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Return an SVG element, as `h` does. */
export function s(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.entries(value).forEach(([key, one]) => element.style.setProperty(key, one));
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const number = (x) => (x === null || x === undefined ? "-" : x.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212"));
export const percent = (x) => (x === null || Number.isNaN(x) ? "-" : `${Math.round(100 * x)}%`);

/** Return a large number with a prefix of the SI: 1.2 G. */
export function big(x) {
  const power = Math.min(6, Math.max(0, Math.floor(Math.log10(x || 1) / 3)));
  return `${(x / 1000 ** power).toPrecision(3)} ${["", "k", "M", "G", "T", "P", "E"][power]}`.trim();
}

/** Return at most six round numbers between `low` and `high`. */
export function ticks(low, high) {
  const rough = 10 ** Math.floor(Math.log10((high - low) / 6));
  const step = [1, 2, 5, 10, 20].map((k) => k * rough).find((one) => (high - low) / one <= 5);
  const first = Math.ceil(low / step), last = Math.floor(high / step);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toFixed(10)));
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Copy a text. Browsers offer the clipboard only to HTTPS and local pages; others copy a selection. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Return a button that shows for a moment that its action is done. */
export function action(label, done, work, properties = {}) {
  const button = h("button", {
    type: "button",
    ...properties,
    onclick: async () => {
      await work();
      button.textContent = done;
      setTimeout(() => { button.textContent = label; }, 1500);
    },
  }, label);
  return button;
}

// The tree of candidates: each one continues its parent, and the kept ones form the response.

import { quoted, verdictOf } from "./candidates.js";
import { h, number, s } from "./dom.js";

const WIDTH = 44, HEIGHT = 22, MARGIN = 14; // pixels

/** Return the tree of candidates, in which the arrow keys move. */
export function tree({ all }) {
  const root = { key: "root", text: "", tokens: 0 }, children = new Map([[root, []]]), places = new Map();
  all.forEach((one) => children.set(one, []));
  all.forEach((one) => children.get(one.parent ?? root).push(one));
  let rows = 0, depth = 0;
  (function layout(node, level) {
    const below = children.get(node);
    below.forEach((child) => layout(child, level + 1));
    depth = Math.max(depth, level);
    places.set(node, { level, y: below.length ? (places.get(below[0]).y + places.get(below.at(-1)).y) / 2 : rows++ });
  })(root, 0);
  const x = (node) => MARGIN + WIDTH * places.get(node).level, y = (node) => MARGIN + HEIGHT * places.get(node).y;
  const kept = ({ verdict }) => verdict === "accepted" || verdict === "fallback";
  const detail = h("div", { class: "detail", role: "status" });
  const name = (node) => (node === root ? "Start of the response" : `Segment ${node.position + 1}, candidate ${node.candidate + 1}, ${verdictOf(node)[1]}`);
  const dots = new Map([...children.keys()].map((node) => [node, s("g", {
    class: `node ${node === root ? "root" : node.verdict ?? "none"}`, role: "button", tabindex: node === root ? 0 : -1, "aria-label": name(node),
    onclick: () => choose(node), onfocus: () => choose(node), onkeydown: (event) => move(event, node),
  }, s("circle", { cx: x(node), cy: y(node), r: 7 }), s("title", {}, `${name(node)}: ${quoted(node.text)}`))]));

  function choose(node) {
    dots.forEach((dot, one) => { dot.classList.toggle("chosen", one === node); dot.setAttribute("tabindex", one === node ? 0 : -1); });
    const path = [];
    for (let one = node.parent; one; one = one.parent) path.unshift(one.text);
    const figures = ["reward", "threshold", "entropy"].filter((key) => node[key] !== undefined).map((key) => `${key} ${number(node[key])}`);
    detail.replaceChildren(h("p", {}, h("b", {}, name(node)), figures.length ? `: ${figures.join(", ")}` : ""),
      h("p", { class: "response" }, h("span", { class: "soft" }, path.join("").trimStart()), h("mark", {}, node.text)));
  }

  function move(event, node) {
    const siblings = children.get(node.parent ?? root), at = siblings.indexOf(node);
    const target = {
      ArrowLeft: node === root ? null : node.parent ?? root,
      ArrowRight: children.get(node).find(kept) ?? children.get(node)[0],
      ArrowUp: node === root ? null : siblings[at - 1],
      ArrowDown: node === root ? null : siblings[at + 1],
    }[event.key];
    if (event.key.startsWith("Arrow")) event.preventDefault();
    if (target) dots.get(target).focus();
  }

  const edges = all.map((one) => s("path", {
    class: `edge${kept(one) ? " kept" : ""}`,
    d: `M${x(one.parent ?? root)} ${y(one.parent ?? root)}C${x(one) - WIDTH / 2} ${y(one.parent ?? root)} ${x(one) - WIDTH / 2} ${y(one)} ${x(one)} ${y(one)}`,
  }));
  choose(root);
  return h("div", {}, h("p", { class: "soft" }, "Each point is a candidate that continues the one to its left. The arrow keys move, the thick line is the response."),
    h("div", { class: "scroll" }, s("svg", { class: "tree", role: "group", "aria-label": "Tree of candidates", width: 2 * MARGIN + WIDTH * depth, height: 2 * MARGIN + HEIGHT * Math.max(0, rows - 1) }, edges, [...dots.values()])),
    detail);
}

// Permalinks: the state of the page in the fragment of its address, which is never sent to the server.

const PREFIXES = { first: "set.", rival: "rival." };

/** Return the fragment for a state: model, method, settings, rival, seed, max_tokens, prompt and the turns before it. */
export function encode({ turns, first, rival, ...rest }) {
  const given = new URLSearchParams(Object.entries(rest).filter(([, value]) => value !== null && value !== ""));
  Object.entries(first).forEach(([name, text]) => given.set(PREFIXES.first + name, text));
  Object.entries(rival).forEach(([name, text]) => given.set(PREFIXES.rival + name, text));
  if (turns.length) given.set("turns", JSON.stringify(turns));
  return `#${given}`;
}

/** Return the state of a fragment. What it does not have is undefined; turns that are not texts are left out. */
export function decode(fragment) {
  const given = [...new URLSearchParams(fragment.slice(1))];
  const under = (prefix) => Object.fromEntries(given.filter(([name]) => name.startsWith(prefix)).map(([name, text]) => [name.slice(prefix.length), text]));
  const plain = Object.fromEntries(given.filter(([name]) => !name.includes(".")));
  return { ...plain, first: under(PREFIXES.first), rival: under(PREFIXES.rival), turns: texts(plain.turns) };
}

/** Return turns as [prompt, response, ...]. */
function texts(json) {
  try {
    const turns = JSON.parse(json ?? "[]");
    return Array.isArray(turns) ? turns.filter((turn) => Array.isArray(turn) && turn.length > 1 && turn.every((one) => typeof one === "string")) : [];
  } catch {
    return [];
  }
}

// A run: a request to the server, the events that come back, and what they say so far.

export class Run {
  /** `request` has model, method, settings (in JSON types), seed, max_tokens, and messages or a prompt. */
  constructor(request) {
    this.request = request;
    this.events = [];
    this.text = "";
    this.state = "running"; // then ended, stopped or failed
    this.error = "";
    this.outcome = null; // the object `cards` of the response
    this.usage = null;
    this.controller = new AbortController();
  }

  /** Decode, and call `changed` after every event. Closing the stream cancels the request on the server. */
  async start(changed) {
    try {
      for await (const chunk of this.chunks()) {
        this.add(chunk);
        changed();
      }
      if (this.state === "running") throw new Error("The connection ended before the response was complete. Run it again.");
    } catch (error) {
      this.state = this.controller.signal.aborted ? "stopped" : "failed";
      if (this.state === "failed") this.error = error.message;
    }
    changed();
  }

  stop() {
    this.controller.abort();
  }

  add(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    const [choice] = chunk.choices;
    this.text += choice.delta?.content ?? choice.text ?? "";
    if (choice.cards.trace) this.events.push(choice.cards.trace);
    if (choice.finish_reason) {
      this.outcome = choice.cards;
      this.usage = chunk.cards.usage;
      this.state = "ended";
    }
  }

  async *chunks() {
    const { model, method, settings, seed, max_tokens, messages, prompt } = this.request;
    const body = { model, seed, max_tokens, stream: true, cards: { method, settings, trace: true, inspect: true } };
    const response = await fetch(`playground/v1/${messages ? "chat/completions" : "completions"}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, ...(messages ? { messages } : { prompt }) }),
      signal: this.controller.signal,
    });
    if (!response.ok) throw new Error(await reason(response));
    let rest = "";
    for await (const part of parts(response.body.pipeThrough(new TextDecoderStream()))) {
      const lines = (rest + part).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
      }
    }
  }
}

async function* parts(stream) {
  const reader = stream.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) yield part.value;
}

async function reason(response) {
  if (response.status === 401) return "The session has ended. Reload the page and enter an API key.";
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `The server answered with status ${response.status}.`;
}

const keyOf = (position, candidate) => `${position}.${candidate}`;

/**
 * Fold events into candidates by key, the kept segments, and the candidates after the last of them.
 *
 * A candidate has the fields of its events, its verdict, `parent` (a candidate or null) and `start`, the number of response
 * tokens before it. `u` and `schedule` describe its acceptance test.
 */
export function fold(events) {
  const candidates = new Map(), kept = [];
  for (const { event, parent, ...fields } of events) {
    const key = keyOf(fields.position, fields.candidate);
    if (!candidates.has(key)) {
      const before = parent ? candidates.get(keyOf(...parent)) : kept.at(-1);
      candidates.set(key, { key, parent: before ?? null, start: before ? before.start + before.tokens : 0, verdict: null });
    }
    const candidate = candidates.get(key);
    Object.entries(fields).forEach(([name, value]) => { if (value !== null) candidate[name] = value; });
    if (["accepted", "rejected", "fallback"].includes(event)) candidate.verdict = event;
    if (["accepted", "fallback"].includes(event)) kept.push(candidate);
  }
  const all = [...candidates.values()], last = kept.at(-1)?.position ?? -1;
  return { all, kept, pending: all.filter(({ position }) => position > last) };
}

/** Return the candidates for a kept segment; the last one also has those of all later positions, which led nowhere. */
export function rivals({ all, kept }, segment) {
  const last = segment === kept.at(-1);
  return all.filter(({ position }) => position === segment.position || (last && position > segment.position));
}

/** Return the reward minus the threshold, or minus the target reward if there is no threshold; null if either is missing. */
export function margin(candidate, target) {
  const threshold = candidate.threshold ?? target;
  return candidate.reward === undefined || threshold === null || threshold === undefined ? null : candidate.reward - threshold;
}

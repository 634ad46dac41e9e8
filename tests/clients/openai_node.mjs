// OpenAI's client for Node.
import OpenAI from "openai";

const url = process.argv[2];
const messages = [{ role: "user", content: "What did you think of the film?" }];
const fixed = { model: "tiny", max_tokens: 12, seed: 5 };
const best = { method: "best-of-n", settings: { n: 3 } };
const mood = {
  type: "object",
  properties: { mood: { type: "string", enum: ["good", "bad"] } },
  required: ["mood"],
  additionalProperties: false,
};
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });

async function check(feature, act) {
  let error = null;
  try {
    await act();
  } catch (caught) {
    console.error(caught);
    error = `${caught.name}: ${caught.message}`.slice(0, 300);
  }
  console.log(JSON.stringify({ feature, error }));
}

async function direct(path, body) {
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(url + path, { method: "POST", headers, body: JSON.stringify({ ...fixed, ...body }) });
  return reply.json();
}

async function chat(more = {}) {
  return (await direct("/v1/chat/completions", { messages, ...more })).choices[0].message.content;
}

function same(found, expected) {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`got ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
  }
}

await check("chat", async () => {
  const reply = await client.chat.completions.create({ messages, ...fixed });
  same(reply.choices[0].message.content, await chat());
});
await check("stream", async () => {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ messages, stream: true, ...fixed })) {
    text += chunk.choices[0].delta.content;
  }
  same(text, await chat());
});
await check("completion", async () => {
  const expected = await direct("/v1/completions", { prompt: "The film" });
  const reply = await client.completions.create({ prompt: "The film", ...fixed });
  same(reply.choices[0].text, expected.choices[0].text);
});
await check("responses", async () => {
  const given = { model: "tiny", input: messages[0].content, max_output_tokens: 12, seed: 5 };
  same((await client.responses.create(given)).output_text, await chat());
  let text = "";
  for await (const event of await client.responses.create({ ...given, stream: true })) {
    text += event.type === "response.output_text.delta" ? event.delta : "";
  }
  same(text, await chat());
});
await check("log-probabilities", async () => {
  const reply = await client.chat.completions.create({ messages, logprobs: true, top_logprobs: 2, ...fixed });
  const tokens = reply.choices[0].logprobs.content;
  same(tokens.map((token) => token.token).join(""), reply.choices[0].message.content);
});
await check("fields of CARDS", async () => {
  const reply = await client.chat.completions.create({ messages, cards: best, ...fixed });
  same([reply.choices[0].message.content, reply.cards.method], [await chat({ cards: best }), "best-of-n"]);
});
await check("structured output", async () => {
  const form = { type: "json_schema", json_schema: { name: "mood", schema: mood, strict: true } };
  const reply = await client.chat.completions.create({ messages, response_format: form, ...fixed, max_tokens: 60 });
  same(["good", "bad"].includes(JSON.parse(reply.choices[0].message.content).mood), true);
});
await check("errors", async () => {
  try {
    await client.chat.completions.create({ messages, ...fixed, max_tokens: 1000000 });
  } catch (error) {
    same([error.status, error.param], [400, "max_tokens"]);
    return;
  }
  throw new Error("an invalid request was accepted");
});

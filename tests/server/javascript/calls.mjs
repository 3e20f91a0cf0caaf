// What the tests ask of a server through OpenAI's client for JavaScript, one function a test.
//
// `node calls.mjs NAME` reads {"url", "key", "retries", "given"} from standard input, calls the
// function of that name with a client and what was given, and prints what it returns as JSON.
// An error of the client is printed as {"error": {...}}.

import { readFileSync } from "node:fs";
import OpenAI from "openai";

async function gathered(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const calls = {
  async models(client) {
    const listed = await gathered(client.models.list());
    const one = await client.models.retrieve(listed[0].id);
    return { listed, one };
  },

  completion: (client, given) => client.completions.create(given),

  completionStream: async (client, given) =>
    gathered(await client.completions.create({ ...given, stream: true })),

  chat: (client, given) => client.chat.completions.create(given),

  chatStream: async (client, given) =>
    gathered(await client.chat.completions.create({ ...given, stream: true })),

  // The client's own reading of a stream: deltas are put together, tool calls too.
  async chatGathered(client, given) {
    const seen = [];
    const runner = client.chat.completions.stream(given).on("content", (piece) => seen.push(piece));
    return { seen, final: await runner.finalChatCompletion(), usage: await runner.totalUsage() };
  },

  chatParsed: (client, given) => client.chat.completions.parse(given),

  // The client calls the function that the model asks for, with the arguments that it wrote.
  async chatRunsTools(client, { tools, ...given }) {
    const called = [];
    const runnable = tools.map((tool) => ({
      ...tool,
      function: {
        ...tool.function,
        parse: JSON.parse,
        function: (value) => (called.push(value), "sunny"),
      },
    }));
    const runner = client.chat.completions.runTools({ ...given, tools: runnable });
    await runner.done();
    return { called, messages: runner.messages };
  },

  response: (client, given) => client.responses.create(given),

  responseStream: async (client, given) =>
    gathered(await client.responses.create({ ...given, stream: true })),

  async responseGathered(client, given) {
    return client.responses.stream(given).finalResponse();
  },

  embeddings: (client, given) => client.embeddings.create(given),

  // The endpoints that OpenAI's interface does not have, over the same client.
  async others(client, { root, prompt }) {
    const words = await client.post(`${root}/tokenize`, { body: { text: prompt } });
    const text = await client.post(`${root}/detokenize`, { body: { tokens: words.tokens } });
    const score = await client.post(`${root}/score`, { body: { text: prompt } });
    const methods = await client.get("/methods");
    const body = { prompt, max_tokens: 6, temperature: 0, method: "jacobi" };
    const canvas = await gathered(await client.post("/canvas", { body, stream: true }));
    const health = await client.get(`${root}/health`);
    const ready = await client.get(`${root}/ready`);
    const metrics = await client.get(`${root}/metrics`);
    return { words, text, score, methods, canvas, health, ready, metrics };
  },

  // Leaves a stream after some chunks, as a user does who presses stop.
  async left(client, { after, ...given }) {
    const stream = await client.completions.create({ ...given, stream: true });
    let seen = 0;
    for await (const _ of stream) if (++seen === after) break;
    return { seen };
  },

  async aborted(client, { milliseconds, ...given }) {
    const signal = AbortSignal.timeout(milliseconds);
    return client.completions.create(given, { signal });
  },
};

const { url, key, retries, given } = JSON.parse(readFileSync(0, "utf-8"));
let sent = 0;
const client = new OpenAI({
  baseURL: `${url}/v1`,
  apiKey: key,
  maxRetries: retries,
  fetch: (...request) => (sent++, fetch(...request)),
});
let result;
try {
  result = { value: await calls[process.argv[2]](client, given) };
} catch (error) {
  if (!(error instanceof OpenAI.OpenAIError)) throw error;
  const { status, param, code, type, message, requestID } = error;
  result = { error: { kind: error.constructor.name, status, param, code, type, message, requestID } };
}
process.stdout.write(JSON.stringify({ ...result, sent }));

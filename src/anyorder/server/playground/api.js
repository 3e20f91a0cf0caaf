// HTTP alone: what the page knows of the server is in this file.

let key = sessionStorage.getItem("anyorder-key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("anyorder-key", value);
}

export class ServerError extends Error {}

async function send(path, body, signal) {
  const headers = {};
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  const text = body === undefined ? undefined : JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, { method, headers, body: text, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer.");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({}));
    throw new ServerError(said.error?.message ?? `The server answered ${response.status}.`);
  }
  return response;
}

export async function get(path) {
  return (await send(path)).json();
}

/** Every `data:` of a stream of server-sent events, parsed, until [DONE]. */
export async function* stream(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart()).join("\n");
        if (!data) continue;
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ServerError(event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function downloadJSON(name, value) {
  download(name, new Blob([JSON.stringify(value, null, 2)], { type: "application/json" }));
}

// The chat: stream, stop, regenerate, edit, branch, export.
import { ServerError, download, downloadJSON, stream } from "./api.js";
import { Conversation } from "./conversation.js";
import { make, tell } from "./elements.js";
import { settings } from "./options.js";

const STORE = "anyorder-chat";
const byId = (id) => document.getElementById(id);

export function openChat(methods, model, preferred) {
  const chosen = settings(methods, preferred, { varied: true });
  byId("chat-settings").append(chosen.element);
  const log = byId("messages");
  let conversation = new Conversation(JSON.parse(localStorage.getItem(STORE) ?? "null"));
  let running = null;

  function save() {
    localStorage.setItem(STORE, JSON.stringify({ root: conversation.root }));
  }

  function head(node) {
    const parent = conversation.parent(node);
    const count = parent.children.length;
    const turn = (by) => {
      const label = by < 0 ? "previous branch" : "next branch";
      return make("button", {
        type: "button", disabled: running !== null, "aria-label": label,
        onclick: () => {
          const at = conversation.path().indexOf(node);
          parent.chosen = (parent.chosen + by + count) % count;
          save();
          show();
          log.children[at].querySelector(`[aria-label="${label}"]`).focus();
        },
      }, by < 0 ? "‹" : "›");
    };
    return make("header", {},
      make("strong", {}, node.role === "user" ? "You" : "Model"),
      count > 1 ? make("span", {}, turn(-1), ` ${parent.chosen + 1}/${count} `, turn(1)) : null,
      node.role === "user" ? make("button", { type: "button", disabled: running !== null, onclick: () => edit(node) }, "Edit") : null,
      node.costs ? make("span", {}, node.costs) : null);
  }

  function show() {
    log.replaceChildren(...conversation.path().map((node) => make("article", { className: `turn ${node.role}` },
      head(node), make("div", { className: "body" }, node.content || "…"),
      node.problem ? make("div", { className: "wrong" }, node.problem) : null)));
    byId("stop").disabled = running === null;
    byId("send").disabled = running !== null;
    byId("regenerate").disabled = running !== null || conversation.last().role !== "assistant";
  }

  async function answer(parent) {
    const node = conversation.add(parent, "assistant", "");
    running = new AbortController();
    show();
    const body = log.lastElementChild.querySelector(".body");
    body.scrollIntoView({ block: "nearest" });
    const began = performance.now();
    try {
      const asked = { ...chosen.request(), model: model(), messages: conversation.messagesTo(parent), stream: true, stream_options: { include_usage: true } };
      for await (const event of stream("v1/chat/completions", asked, running.signal)) {
        const piece = event.choices?.[0]?.delta?.content;
        if (piece) {
          // Whoever has scrolled away to read is left in peace.
          const watched = body.getBoundingClientRect().bottom <= innerHeight + 8;
          node.content += piece;
          body.textContent = node.content;
          if (watched) body.scrollIntoView({ block: "nearest" });
        }
        if (event.usage) node.costs = costs(asked.method, event.usage, began);
      }
    } catch (error) {
      if (error.name === "AbortError") node.costs = "stopped";
      else if (error instanceof ServerError) node.problem = error.message;
      else throw error;
    } finally {
      running = null;
      save();
      show();
    }
  }

  function edit(node) {
    const article = log.children[conversation.path().indexOf(node)];
    const area = make("textarea", { rows: 3, value: node.content, "aria-label": "Edited message" });
    const done = () => {
      const parent = conversation.parent(node);
      answer(conversation.add(parent, "user", area.value));
    };
    article.querySelector(".body").replaceChildren(area, make("div", { className: "buttons" },
      make("button", { type: "button", className: "main", onclick: done }, "Send as a branch"),
      make("button", { type: "button", onclick: show }, "Cancel")));
    area.focus();
  }

  byId("say").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("message").value.trim();
    if (!text || running) return;
    tell();
    byId("message").value = "";
    answer(conversation.add(conversation.last(), "user", text));
  });
  byId("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("say").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("regenerate").addEventListener("click", () => answer(conversation.parent(conversation.last())));
  byId("new-chat").addEventListener("click", () => {
    running?.abort();
    conversation = new Conversation();
    save();
    show();
    byId("message").focus();
  });
  byId("export-json").addEventListener("click", () => downloadJSON("chat.json", conversation.root));
  byId("export-text").addEventListener("click", () => {
    const text = conversation.path().map(({ role, content }) => `${role}:\n${content}\n`).join("\n");
    download("chat.txt", new Blob([text], { type: "text/plain" }));
  });
  show();
}

function costs(method, usage, began) {
  const seconds = (performance.now() - began) / 1000;
  const parts = [method, `${usage.completion_tokens} tokens`];
  if (usage.forward_passes) parts.push(`${usage.forward_passes} passes`, `${usage.tokens_per_pass.toFixed(2)} tokens a pass`);
  return [...parts, `${seconds.toFixed(1)} s`].join(", ");
}

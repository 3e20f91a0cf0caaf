// Start: what the server has, the tabs, the theme, the key.
import { ServerError, get, setKey } from "./api.js";
import { openCanvas } from "./canvas.js";
import { openChat } from "./chat.js";
import { tell } from "./elements.js";

const byId = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll('[role="tab"]')];

function choose(tab) {
  for (const one of tabs) {
    const own = one === tab;
    one.setAttribute("aria-selected", String(own));
    one.tabIndex = own ? 0 : -1;
    byId(one.getAttribute("aria-controls")).hidden = !own;
  }
}
for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
}

const THEME = "anyorder-theme";
function dress(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
dress(localStorage.getItem(THEME));
byId("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem(THEME, dark ? "light" : "dark");
  dress(localStorage.getItem(THEME));
});

byId("key").addEventListener("click", () => {
  const key = prompt("API key of this server (kept until this tab is closed):");
  if (key !== null) {
    setKey(key);
    location.reload();
  }
});

async function start() {
  const [models, methods] = await Promise.all([get("v1/models"), get("v1/methods")]);
  for (const model of models.data) {
    const option = document.createElement("option");
    option.textContent = model.id;
    byId("model").append(option);
  }
  const model = () => byId("model").value;
  const usable = methods.data.filter((method) => method.usable);
  openChat(usable, model, models.data[0].default_method);
  openCanvas(byId("canvas-form"), byId("canvas-out"), usable, model);
  openCanvas(byId("compare-form"), byId("compare-out"), usable, model, { compare: true });
}

start().catch((error) => {
  if (!(error instanceof ServerError)) throw error;
  tell(error.message, true);
});

// One recording on the page: its tokens after a pass, what one token says, what it cost.
import { downloadJSON } from "./api.js";
import { shade } from "./colours.js";
import { make, tell } from "./elements.js";
import { savePNG, saveSVG } from "./picture.js";

const WORDS = { fixed: "given", final: "final", draft: "a draft that stays", rejected: "a draft that goes" };

/** `view` is {pass, kind}: which pass to show and how to colour; it is shared by the boards of a page. */
export function board(recording, view) {
  const tokens = make("div", { className: "tokens", role: "group", "aria-label": `Text by ${recording.setup.method}` });
  const costs = make("dl", { className: "costs" });
  const detail = make("div", { className: "detail quiet", "aria-live": "polite" }, "Choose a token to see when and how surely it came.");
  const problem = make("p", { className: "wrong", hidden: true });
  const save = (work) => () => Promise.resolve(work()).catch((error) => tell(String(error), true));
  const element = make("article", { className: "board" },
    make("h2", {}, recording.setup.method), tokens, problem, costs, detail,
    make("div", { className: "buttons" },
      make("button", { type: "button", onclick: () => downloadJSON(`${recording.setup.method}.json`, { setup: recording.setup, events: recording.events, end: recording.end }) }, "Trace as JSON"),
      make("button", { type: "button", onclick: save(() => saveSVG(recording, here(), view.kind)) }, "SVG"),
      make("button", { type: "button", onclick: save(() => savePNG(recording, here(), view.kind)) }, "PNG")));
  const here = () => Math.min(view.pass, recording.passes);

  function describe({ event, state }) {
    const rivals = (event.alternatives ?? []).filter((one) => one.token !== event.token);
    const others = rivals.map((one) => `${quoted(one.text)} ${percent(one.probability)}`).join(", ");
    detail.classList.remove("quiet");
    detail.textContent = `${quoted(event.text)}: ${WORDS[state]}, pass ${event.pass}, place ${event.place + 1}`
      + (event.probability === undefined || event.probability === null ? "" : `, ${percent(event.probability)}`)
      + (event.drafted ? ", drafted" : "") + (others ? `; others: ${others}` : "");
  }

  function show() {
    const pass = here();
    const places = recording.after(pass);
    const children = [];
    for (let place = 0; place < places.length; place += 1) {
      const standing = places[place];
      if (!standing) {
        children.push(make("span", { className: "token open", "aria-label": "open place" }, "▢ "));
        continue;
      }
      const { event, state } = standing;
      const final = state === "final" || state === "fixed";
      const span = make("span", {
        className: `token ${state}${event.pass === pass && final ? " now" : ""}`,
        tabIndex: children.length ? -1 : 0, role: "button",
        onclick: () => describe(standing), onfocus: () => describe(standing),
      }, event.text);
      if (final) span.style.setProperty("--shade", shade(view.kind, event, recording.passes));
      children.push(span);
    }
    tokens.replaceChildren(...children);
    costs.replaceChildren(...recording.costs().flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  }

  // Arrow keys walk along the text; Tab leaves it.
  tokens.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...tokens.querySelectorAll('[role="button"]')];
    const next = all[all.indexOf(document.activeElement) + step];
    if (next) {
      event.preventDefault();
      document.activeElement.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  });

  const fail = (text) => {
    problem.textContent = text;
    problem.hidden = false;
  };
  show();
  return { element, show, fail, recording };
}

const quoted = (text) => `“${text}”`;
const percent = (value) => `${(100 * value).toFixed(1)}%`;

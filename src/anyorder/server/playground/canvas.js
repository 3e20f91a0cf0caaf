// Runs on a canvas: one method (Canvas), or two to four on one prompt (Compare), with one scrubber.
import { ServerError, stream } from "./api.js";
import { board } from "./board.js";
import { SCALES, gradient } from "./colours.js";
import { make } from "./elements.js";
import { settings } from "./options.js";
import { Recording } from "./recording.js";

const FIRST = ["autoregressive", "speculative", "lookahead", "jacobi"];

export function openCanvas(form, out, methods, model, { compare = false } = {}) {
  const columns = make("div", { className: compare ? "boards" : "" });
  const sides = [];
  const prompt = make("textarea", { rows: 3, value: "Repeat after me: the sea, the sea, the sea.", required: true });
  const chat = make("input", { type: "checkbox", checked: true });
  const history = make("input", { type: "checkbox", checked: true });
  const run = make("button", { className: "main" }, compare ? "Compare" : "Run");
  const stop = make("button", { type: "button", disabled: true }, "Stop");
  const buttons = make("div", { className: "buttons" }, run, stop,
    make("label", {}, chat, "as a chat message"), make("label", {}, history, "show drafts and revisions"));
  let running = null;

  function add(name) {
    const chosen = settings(methods, name);
    const box = make("div", { className: "settings" }, chosen.element);
    const side = { chosen, box };
    if (compare) {
      const away = make("button", { type: "button", onclick: () => {
        sides.splice(sides.indexOf(side), 1);
        box.remove();
        limits();
      } }, "Remove");
      side.away = away;
      box.append(away);
    }
    sides.push(side);
    columns.append(box);
    limits();
  }

  const more = make("button", { type: "button", onclick: () => add(FIRST[sides.length]) }, "Add a method");
  function limits() {
    more.disabled = sides.length >= 4;
    for (const side of sides) if (side.away) side.away.disabled = sides.length <= 2;
  }
  if (compare) buttons.append(more);
  form.append(make("label", { className: "wide" }, "Prompt", prompt), columns, buttons);
  add(FIRST[0]);
  if (compare) add(FIRST[1]);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    run.disabled = true;
    stop.disabled = false;
    const view = { pass: Infinity, kind: "probability" };
    const boards = sides.map((side) => board(new Recording(asked(side)), view));
    const player = controls(boards, view);
    out.replaceChildren(player.element, make("div", { className: "boards" }, ...boards.map((one) => one.element)));
    await Promise.all(boards.map((one) => follow(one, player)));
    running = null;
    run.disabled = false;
    stop.disabled = true;
  });
  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });

  function asked(side) {
    const text = prompt.value;
    const what = chat.checked ? { messages: [{ role: "user", content: text }] } : { prompt: text };
    return { ...side.chosen.request(), ...what, model: model(), history: history.checked, top_logprobs: 3 };
  }

  async function follow(one, player) {
    const began = performance.now();
    try {
      for await (const event of stream("v1/canvas", one.recording.setup, running.signal)) {
        one.recording.add(event);
        player.grown(one);
      }
    } catch (error) {
      if (error.name === "AbortError") one.fail("Stopped.");
      else if (error instanceof ServerError) one.fail(error.message);
      else throw error;
    }
    one.recording.seconds = (performance.now() - began) / 1000;
    player.grown(one);
  }
}

/** Scrubber, replay and colours for some boards. */
function controls(boards, view) {
  const slider = make("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Pass" });
  const shown = make("output", {}, "");
  const play = make("button", { type: "button" }, "Replay");
  const kind = make("select", {}, ...Object.entries(SCALES).map(([value, text]) => make("option", { value }, text)));
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = gradient();
  let timer = 0, frame = 0;
  const last = () => Math.max(...boards.map((one) => one.recording.passes));
  const show = () => {
    shown.textContent = `pass ${slider.value} of ${slider.max}`;
    for (const one of boards) one.show();
  };
  const go = (pass) => {
    slider.value = pass;
    view.pass = Number(pass) >= last() ? Infinity : Number(pass);
    show();
  };
  slider.addEventListener("input", () => { clearInterval(timer); go(slider.value); });
  kind.addEventListener("change", () => { view.kind = kind.value; show(); });
  play.addEventListener("click", () => {
    clearInterval(timer);
    go(0);
    timer = setInterval(() => {
      go(Number(slider.value) + 1);
      if (Number(slider.value) >= last()) clearInterval(timer);
    }, 120);
  });
  const element = make("div", {},
    make("div", { className: "buttons" }, play, slider, shown),
    make("div", { className: "legend quiet" }, make("label", {}, "Colour shows ", kind),
      make("span", {}, "unlikely or late ", swatch, " sure or early"),
      make("span", { className: "token draft" }, "draft"), make("span", { className: "token draft rejected" }, "rejected draft"),
      make("span", {}, "▢ open place")));
  // Many events of a pass arrive at once; the page is drawn once a frame.
  const grown = () => {
    if (frame) return;
    frame = requestAnimationFrame(() => {
      frame = 0;
      const follows = view.pass === Infinity;
      slider.max = last();
      if (follows) slider.value = slider.max;
      show();
    });
  };
  return { element, grown };
}

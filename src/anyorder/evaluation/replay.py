"""A page that replays answers to one prompt, pass by pass, beside each other.

All answers are at the same pass at any time, so what takes fewer passes ends earlier. Each stands
there as a text whose colours are the order in which it was written (`boards`), with what was not
final where the request kept its history, and as a picture, whose numbers say what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from html import escape

from anyorder.core.request import Completion
from anyorder.evaluation.boards import SCRIPT, STYLE, board_data, board_lines
from anyorder.evaluation.pictures import trace_svg
from anyorder.evaluation.svg import clean


def replay_html(completions: Seq[Completion], *, models: Seq[str], prompt: str) -> str:
    """A self-contained page; `models` names the model of each answer."""
    sections, num_boards = [], 0
    for completion, model in zip(completions, models, strict=True):
        sections.append(
            f"<section>\n<h2>{escape(clean(f'{completion.method} on {model}'))}</h2>\n"
            f"{board_lines(completion, num_boards)}\n"
            f"{trace_svg(completion, model=model, prompt=prompt)}\n</section>"
        )
        num_boards += len(completion.choices)
    traces = [choice.trace for completion in completions for choice in completion.choices]
    last = max(entry.step for trace in traces for entry in trace)
    title = ", ".join(dict.fromkeys(completion.method for completion in completions))
    page = _PAGE.replace("TITLE", escape(title)).replace("LAST", str(last))
    # What models write goes in last: it may hold anything, the marks of other places too.
    before, _, rest = page.partition("PICTURES")
    between, _, after = rest.partition("/* BOARDS */")
    boards = f"const boards = {board_data(completions)};{SCRIPT}"
    return "".join((before, "\n".join(sections), between, boards, after))


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>decode trace: TITLE</title>
<style>
:root{color-scheme:light dark;font:14px ui-monospace,Menlo,monospace}
body{margin:24px auto;max-width:1800px;padding:0 12px}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(560px,100%),1fr));gap:16px}
svg{width:100%;height:auto;max-width:880px;justify-self:center}
form{display:flex;gap:12px;align-items:center;margin:12px 4px}
input{flex:1}
g[data-step]{transition:opacity .15s}
g.later{opacity:.06}/* STYLE */
</style>
<form>
<button type="button" id="play">replay</button>
<input type="range" id="pass" min="0" max="LAST" value="LAST" aria-label="pass">
<output id="shown">pass LAST of LAST</output>
</form>
<p class="hint">Colour is order: from red, the first pass, to blue, the last. What is dotted was not
final then.</p>
<main>
PICTURES
</main>
<script>
/* BOARDS */
const slider = document.getElementById("pass"), shown = document.getElementById("shown");
function show() {
  for (const group of document.querySelectorAll("g[data-step]"))
    group.classList.toggle("later", Number(group.dataset.step) > Number(slider.value));
  draw(Number(slider.value));
  shown.textContent = `pass ${slider.value} of ${slider.max}`;
}
let timer = 0;
slider.addEventListener("input", () => { clearInterval(timer); show(); });
document.getElementById("play").addEventListener("click", () => {
  clearInterval(timer);
  slider.value = 0;
  show();
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) clearInterval(timer);
  }, 120);
});
</script>
</html>
""".replace("/* STYLE */", STYLE)

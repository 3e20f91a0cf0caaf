"""A page that replays several answers to one prompt side by side, each in the order of its passes.

The slider is a share of each answer's own passes, so that all begin and end together: what differs
is the order, and the numbers below each picture say what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from html import escape

from anyorder.core.request import Completion
from anyorder.evaluation.pictures import trace_svg


def comparison_html(completions: Seq[Completion], *, models: Seq[str], prompt: str) -> str:
    """A self-contained page; `models` names the model of each answer."""
    pictures = "\n".join(
        f"<section>{trace_svg(completion, model=model, prompt=prompt)}</section>"
        for completion, model in zip(completions, models, strict=True)
    )
    title = " / ".join(dict.fromkeys(completion.method for completion in completions))
    return _PAGE.replace("TITLE", escape(title)).replace("PICTURES", pictures)


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>TITLE</title>
<style>
:root{color-scheme:light dark;font:14px ui-monospace,Menlo,monospace}
body{margin:24px auto;max-width:1800px;padding:0 12px}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(560px,100%),1fr));gap:16px}
svg{width:100%;height:auto}
form{display:flex;gap:12px;align-items:center;margin:12px 4px;position:sticky;top:0}
input{flex:1}
g[data-step]{transition:opacity .15s}
g.later{opacity:.06}
</style>
<form>
<button type="button" id="play">replay</button>
<input type="range" id="share" min="0" max="100" value="100" aria-label="share of the passes">
<output id="shown">100 % of the passes</output>
</form>
<main>
PICTURES
</main>
<script>
const slider = document.getElementById("share"), shown = document.getElementById("shown");
const answers = [...document.querySelectorAll("section")].map((section) => {
  const groups = [...section.querySelectorAll("g[data-step]")];
  return { groups, last: Math.max(1, ...groups.map((group) => Number(group.dataset.step))) };
});
function show() {
  for (const { groups, last } of answers)
    for (const group of groups)
      group.classList.toggle("later", Number(group.dataset.step) > (slider.value / 100) * last);
  shown.textContent = `${slider.value} % of the passes`;
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
    if (Number(slider.value) >= 100) clearInterval(timer);
  }, 60);
});
</script>
</html>
"""

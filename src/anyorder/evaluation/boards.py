"""Answers as running text for a page that replays them: what stood after each pass.

A board shows a choice's text with its tokens coloured by the pass that made them final, from red,
the first, to blue, the last; what the request fixed has no colour. Where the request kept a history
(`Request.history`), what stood at a place before and was replaced, taken back or moved is shown in
the passes in which it stood there, dotted.

A token's final form takes its place with the pass that drew it, unless something else is told of
the place later: where texts grow and shrink as they are made, tokens move.
"""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from html import escape

from anyorder.core.request import Choice, Completion
from anyorder.evaluation.svg import clean, probability_color

OPEN = "▁"
"""Stands for a place that is open."""

SCRIPT = """
function stood(board, pass) {
  const shown = board.final.map(() => null);
  for (const [step, place, text] of board.history)
    if (step <= pass) shown[place] = text === null ? null : { text, color: null };
  board.final.forEach(([text, step, color, from], place) => {
    if (from <= pass) shown[place] = { text, color };
  });
  while (shown.length > board.final.length && !shown[shown.length - 1]) shown.pop();
  return shown;
}
function draw(pass) {
  for (const line of document.querySelectorAll("p.board"))
    line.replaceChildren(...Array.from(stood(boards[line.dataset.board], pass), (token) => {
      const part = document.createElement("span");
      part.textContent = token ? token.text : "OPEN";
      part.className = !token ? "open" : token.color === null ? "draft" : "final";
      if (token && token.color) part.style.color = token.color;
      return part;
    }));
}
""".replace("OPEN", OPEN)
"""`draw(pass)` shows every board as it stood after a pass; `boards` is what `board_data` makes."""

STYLE = """
p.board{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 4px 8px;line-height:1.5}
.draft{opacity:.6;font-style:italic;text-decoration:underline dotted}.open{opacity:.35}
.hint{margin:0 4px 12px;opacity:.7}h2{font-size:14px;margin:8px 4px 0}section{min-width:0}
"""


def board_data(completions: Seq[Completion]) -> str:
    """All choices' boards as JSON that may stand inside a script."""
    boards = [_board(choice) for completion in completions for choice in completion.choices]
    return json.dumps(boards).replace("<", "\\u003c").replace(">", "\\u003e")


def board_lines(completion: Completion, first: int) -> str:
    """The boards of an answer, whose choices are numbers `first`, `first` + 1, ..., at their end:
    what a reader without scripts sees."""
    lines = []
    for number, choice in enumerate(completion.choices, start=first):
        spans = (
            f'<span class="final" style="color:{color or "inherit"}">{escape(str(text))}</span>'
            for text, _, color, _ in _board(choice)["final"]
        )
        lines.append(f'<p class="board" data-board="{number}">{"".join(spans)}</p>')
    return "\n".join(lines)


def _board(choice: Choice) -> dict[str, Seq[tuple[object, ...]]]:
    """Final tokens as (text, pass, colour, pass in which they take their place), and what stood
    before as (pass, place, text)."""
    told = {entry.place: entry.step for entry in choice.history}
    last = max((entry.step for entry in choice.trace), default=1)
    final = [
        (
            _shown(entry.text),
            entry.step,
            probability_color((entry.step - 1) / max(last - 1, 1)) if entry.step else "",
            max(entry.step, told.get(place, 0)),
        )
        for place, entry in enumerate(choice.trace)
    ]
    history = [
        (entry.step, entry.place, None if entry.token is None else _shown(entry.text))
        for entry in choice.history
    ]
    return {"final": final, "history": history}


def _shown(text: str) -> str:
    """A token as text that breaks lines where it does."""
    lines = text.replace("\\n", "\n").replace("\\t", "    ").replace("\\r", "\n").split("\n")
    return "\n".join(map(clean, lines)) or "∅"

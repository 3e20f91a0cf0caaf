"""Generate text for one prompt. The text goes to stdout as it becomes final.

The prompt is read from stdin if it is absent or "-"; one line break at its end is dropped. With a
canvas, an absent prompt is an empty one. On a terminal, a filled canvas shows what was filled in.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from anyorder.cli.files import read_text, text_argument
from anyorder.cli.model_flags import add_model_flags, open_engine
from anyorder.cli.request_flags import add_request_flags, make_request, request_fields
from anyorder.cli.terminal import by_order, cost_line, note, visible
from anyorder.cli.traces import trace_path, write_trace
from anyorder.core.errors import InvalidRequest, RequestFailed
from anyorder.core.request import Completion, Event, Prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, where the answer goes, and every control over it."""
    parser.usage = "%(prog)s [PROMPT] [-m MODEL] [--method NAME] [-o NAME=VALUE ...] [FLAGS]"
    add = parser.add_argument
    add_prompt_flags(parser)
    add("--json", action="store_true", help="print one JSON object instead of the text")
    add("--stats", action="store_true", help="what it cost, on stderr")
    add("--trace", metavar="FILE", help="how it came about: .svg, .html or .json")
    add_model_flags(parser)
    add_request_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Generate, stream, report."""
    trace = None if arguments.trace is None else trace_path(arguments.trace)
    fields = request_fields(arguments)
    if trace is not None:
        fields.setdefault("history", True)
    text, prompt = read_prompt(arguments, fields)
    request = make_request(prompt, fields)
    engine = open_engine(arguments)
    printer = Printer(num_choices=1 if arguments.json else request.n)
    coloured = request.canvas is not None and sys.stdout.isatty()
    completion = None
    for event in engine.stream(request):
        completion = event.completion
        if not (arguments.json or coloured):
            printer.show(event)
    assert completion is not None, "the last event carries the completion"
    if arguments.json:
        print(json.dumps(completion.to_dict(), ensure_ascii=False))
    elif coloured:
        _print_filled(completion)
    else:
        printer.finish(completion)
    if arguments.stats:
        note(cost_line(completion.report))
    if trace is not None:
        shown = text if prompt is text else f"{text}\n"  # the answer to a message is a new line
        write_trace(trace, completion, model=engine.abilities.name, prompt=shown)
    return 0


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """The prompt, as a text or as a message."""
    add = parser.add_argument
    add("prompt", metavar="PROMPT", nargs="?", help='the text to continue; "-" or none: stdin')
    add("--chat", action="store_true", help="PROMPT is a user's message, not a text to continue")
    add("--system", metavar="TEXT", help="system message before it; means --chat")
    mark = "<|mask|> or <|mask:8|> where one place or eight are to be filled in"
    add("--canvas", metavar="TEXT", help=f"the new text, with {mark}")
    add("--canvas-file", metavar="FILE", help="the same from a file; a last line break is dropped")


def read_prompt(arguments: argparse.Namespace, fields: dict[str, Any]) -> tuple[str, Prompt]:
    """The text that was given and the prompt that it means. A canvas joins the request's fields; in
    a chat, a negative prompt among them becomes a message too."""
    canvas = _canvas(arguments)
    if canvas is not None:
        fields["canvas"] = canvas
    is_absent = canvas is not None and arguments.prompt is None
    text = "" if is_absent else text_argument(arguments.prompt, "prompt")
    if not arguments.chat and arguments.system is None:
        return text, text
    if "negative_prompt" in fields:
        fields["negative_prompt"] = as_chat(fields["negative_prompt"], arguments.system)
    return text, as_chat(text, arguments.system)


def _canvas(arguments: argparse.Namespace) -> str | None:
    """The canvas that was given, if any."""
    if arguments.canvas_file is None:
        return None if arguments.canvas is None else text_argument(arguments.canvas, "canvas")
    if arguments.canvas is not None:
        raise InvalidRequest("--canvas and --canvas-file exclude each other; give one.")
    return read_text(Path(arguments.canvas_file)).removesuffix("\n").removesuffix("\r")


def as_chat(text: str, system: str | None) -> list[dict[str, str]]:
    """A user's message, perhaps after a system message."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": text}]


def _print_filled(completion: Completion) -> None:
    """The choices of a canvas, with what was filled in coloured."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for number, choice in enumerate(completion.choices, 1):
        if len(completion.choices) > 1:
            console.print(f"--- {number} of {len(completion.choices)} ---")
        console.print(by_order(choice.trace))


class Printer:
    """Streams choices to stdout one after the other: the first as it comes, later ones held back
    until it is their turn. Several are labelled."""

    def __init__(self, *, num_choices: int) -> None:
        self._num_choices = num_choices
        self._current = -1
        self._held = [""] * num_choices
        self._ended = [False] * num_choices

    def show(self, event: Event) -> None:
        """Print what may be printed now."""
        if event.completion is not None:
            return
        self._held[event.choice] += event.text
        self._ended[event.choice] = event.finish_reason is not None
        if self._current < 0:
            self._begin(0)
        while True:
            self._release()
            if not self._ended[self._current] or self._current + 1 == self._num_choices:
                return
            print()
            self._begin(self._current + 1)

    def finish(self, completion: Completion) -> None:
        """End the last line."""
        if self._current < 0:  # no choice was made at all
            raise RequestFailed(f"{completion.method} found no text that satisfies the request")
        print(flush=True)

    def _begin(self, choice: int) -> None:
        self._current = choice
        if self._num_choices > 1:
            print(f"--- {choice + 1} of {self._num_choices} ---")

    def _release(self) -> None:
        text, self._held[self._current] = self._held[self._current], ""
        if text:
            sys.stdout.write(visible(text))
            sys.stdout.flush()

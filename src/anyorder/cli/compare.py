"""One prompt by several methods: texts, coloured by the order they were written in, and costs.

Methods run one after the other and alone, with the same controls and nothing cached, after a first
pass that nobody counts. `method@MODEL` runs a method on another model than -m names. An option is
written `-o METHOD.NAME=VALUE`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyorder.cli.files import write_text
from anyorder.cli.generate import add_prompt_flags, read_prompt
from anyorder.cli.model_flags import add_model_flags, open_engine
from anyorder.cli.request_flags import (
    add_request_flags,
    make_request,
    method_options,
    request_fields,
)
from anyorder.cli.terminal import by_order
from anyorder.core import lookup
from anyorder.core.errors import InvalidRequest, UnknownName, UserError
from anyorder.core.request import Completion, Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One side of the comparison."""

    model: str
    request: Request
    options: str
    """As they were given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The prompt, the methods, and the controls that all of them share."""
    parser.usage = "%(prog)s [PROMPT] --methods NAME[@MODEL],... [-m MODEL] [FLAGS]"
    add = parser.add_argument
    add_prompt_flags(parser)
    add("--methods", metavar="NAMES", help="methods, with commas between them")
    add("--json", action="store_true", help="print one JSON object instead of texts and table")
    add("--html", metavar="FILE", help="write a page that replays them, pass by pass")
    add_model_flags(parser)
    add_request_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run them all, print what came of it."""
    page = None if arguments.html is None else _page_path(arguments.html)
    entries = _entries(arguments)
    negative = entries[0].request.negative_prompt
    fields: dict[str, Any] = {} if negative is None else {"negative_prompt": negative}
    if page is not None:
        fields["history"] = True  # its replay shows what was not final
    text, fields["prompt"] = read_prompt(arguments, fields)
    entries = [
        dataclasses.replace(entry, request=dataclasses.replace(entry.request, **fields))
        for entry in entries
    ]
    answers: dict[int, Completion] = {}
    for model in dict.fromkeys(entry.model for entry in entries):
        engine = open_engine(argparse.Namespace(**{**vars(arguments), "model": model}))
        mine = [index for index, entry in enumerate(entries) if entry.model == model]
        # What only the first pass pays (memory, threads) is nobody's.
        handle = engine.submit(entries[mine[0]].request)
        engine.tick()
        engine.abort(handle)
        answers |= {index: engine.generate(entries[index].request) for index in mine}
    completions = [answers[index] for index in range(len(entries))]
    if arguments.json:
        sides = [
            {"model": entry.model, "seconds": _seconds(completion), **completion.to_dict()}
            for entry, completion in zip(entries, completions, strict=True)
        ]
        print(json.dumps({"prompt": fields["prompt"], "answers": sides}, ensure_ascii=False))
    else:
        _print(entries, completions)
    if page is not None:
        from anyorder.evaluation.replay import replay_html

        models = [entry.model for entry in entries]
        write_text(page, replay_html(completions, models=models, prompt=text))
    return 0


def _page_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".html" or not path.parent.is_dir():
        raise UserError(f"--html takes a file in an existing folder ending in .html; got {text!r}.")
    return path


def _entries(arguments: argparse.Namespace) -> list[Entry]:
    """What is compared, refused before any model is loaded; prompts come later."""
    if arguments.method is not None:
        raise InvalidRequest("--method names one method; compare takes several, by --methods.")
    if not arguments.methods:
        known = ", ".join(lookup.names("methods"))
        raise InvalidRequest(f"--methods lacks names; choose some of {known}.")
    named = [name.partition("@") for name in arguments.methods.split(",")]
    given = _options(arguments.option or [], {name for name, _, _ in named})
    arguments.option = None
    fields = request_fields(arguments)
    entries = []
    for name, mark, model in named:
        options = method_options(name, given.get(name, []))
        if mark and not model:
            raise InvalidRequest(f"--methods has {name}@ without a model.")
        request = make_request("", {**fields, "method": name, "options": options})
        request = dataclasses.replace(request, prefix_cache=False)
        shown = ", ".join(given.get(name, []))
        entries.append(Entry(model=model or arguments.model, request=request, options=shown))
    return entries


def _options(assignments: list[str], methods: set[str]) -> Mapping[str, list[str]]:
    """Options by method."""
    found: dict[str, list[str]] = {}
    for assignment in assignments:
        method, dot, rest = assignment.partition(".")
        if not dot or "=" in method:
            raise InvalidRequest(
                f"an option of a comparison is written METHOD.NAME=VALUE; got {assignment!r}."
            )
        if method not in methods:
            raise UnknownName("compared method", method, sorted(methods))
        found.setdefault(method, []).append(rest)
    return found


def _seconds(completion: Completion) -> float:
    return completion.report.prefill_seconds + completion.report.decode_seconds


# ---------------------------------------------------------------------------------------- terminal
def _print(entries: list[Entry], completions: list[Completion]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for entry, completion in zip(entries, completions, strict=True):
        options = f" ({entry.options})" if entry.options else ""
        console.print(_title(entry, entries) + options, style="bold")
        for choice in completion.choices:
            console.print(by_order(choice.trace))
        console.print()
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "tokens", "passes", "per pass", "seconds", "tokens/s", "", ""):
        is_text = heading in ("method", "")
        # Names may be cut short; numbers may not.
        least = len(heading) if is_text else max(len(heading), 6)
        table.add_column(
            heading, justify="left" if is_text else "right", no_wrap=True, min_width=least
        )
    for entry, completion in zip(entries, completions, strict=True):
        report, seconds = completion.report, _seconds(completion)
        table.add_row(
            _title(entry, entries, short=True),
            str(report.num_new_tokens),
            str(report.num_forward_passes),
            f"{report.tokens_per_pass:.2f}",
            f"{seconds:.2f}",
            f"{report.num_new_tokens / max(seconds, 1e-9):.1f}",
            "exact" if report.exact else "approximate",
            "same text" if completion.tokens == completions[0].tokens else "",
        )
    console.print(table)
    console.print("Colour is order: from red, the first pass, to blue, the last.", style="dim")


def _title(entry: Entry, entries: list[Entry], *, short: bool = False) -> str:
    """The method and, where several run, the model: `short`, a path's last part if that tells."""
    name, models = entry.request.method, {e.model for e in entries}
    if len(models) == 1:
        return name
    is_told = short and len({Path(model).name for model in models}) == len(models)
    return f"{name} on {Path(entry.model).name if is_told else entry.model}"

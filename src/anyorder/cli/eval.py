"""Measure models on text that they were not trained on, and print a table.

Several models are compared with the first. --data names a recipe (its held-out part), corpora from
`anyorder data list`, files, or prompts such as builtin:lists. On a terminal and in a file the table
is Markdown; the same command gives the same numbers, times aside.

tasks:
  likelihood    perplexity and bits per byte; a bound for diffusion models (the default)
  translation   BLEU and chrF on pairs
  drafting      tokens accepted per draft check, for --draft models
  quality       diversity, repetition and a judge's perplexity of samples
  brier         BrierLM: from draws alone, so on one scale for all ways of decoding
  exposure      do errors add up on the model's own text? against an --oracle
  classification  accuracy and FLOPs of a classifier with early exits
  restoration   what an autoencoder of patches (CALM) gives back
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.cli.files import write_text
from anyorder.cli.request_flags import add_request_flags, flag_of
from anyorder.cli.terminal import progress
from anyorder.core.errors import InvalidRequest, UnknownName

if TYPE_CHECKING:
    from anyorder.evaluation.tables import Table

TASKS = (
    *("likelihood", "translation", "drafting", "quality"),
    *("brier", "exposure", "classification", "restoration"),
)
_SHARED = frozenset({"models", "data", "task", "json", "output", "dtype"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of all tasks; each refuses those of the others."""
    parser.usage = "%(prog)s MODEL ... --data DATA ... [--task NAME] [FLAGS]"
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help="names or folders; or files of outputs")
    add("--data", metavar="DATA", nargs="+", help="a recipe, corpora, files or builtin: prompts")
    add("--task", metavar="NAME", default="likelihood", help="what to measure [likelihood]")
    add("--part", metavar="NAME", help="of a recipe's data: validation or test [validation]")
    add("--num", metavar="N", help="most documents, pairs or prompts")
    add("--dtype", metavar="TYPE", help="float32, bfloat16 or float16 [float32 on a CPU]")
    add("--quantize", metavar="BITS", help="weights as int8 or int4 [as --dtype says]")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    add("--output", metavar="FILE", help="also write it, as .md or .json")
    for task in TASKS:
        _module(task).add_arguments(parser)
    add_request_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    task = arguments.task
    if task not in TASKS:
        raise UnknownName("task", task, TASKS)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and output.suffix not in (".md", ".json"):
        raise InvalidRequest(f"--output must end in .md or .json, got {str(output)!r}.")
    module = _module(task)
    _refuse_others(arguments, task, module)
    started = time.perf_counter()
    shown = progress()
    try:
        table: Table = module.measure(arguments, shown).with_ratios()
    finally:
        shown.close()
    seconds = time.perf_counter() - started
    text = f"{table.markdown()}\n{_machine(seconds)}\n"
    data = json.dumps({"task": task, **table.to_dict(), "seconds": seconds}, ensure_ascii=False)
    if arguments.json:
        print(data)
    elif on_terminal():
        _show(table)
        print(f"\n{_machine(seconds)}")
    else:
        print(text, end="")
    if output is not None:
        write_text(output, text if output.suffix == ".md" else f"{data}\n")
    return 0


def _module(task: str) -> Any:
    return importlib.import_module(f"anyorder.cli.evaluations.{task}")


def _refuse_others(arguments: argparse.Namespace, task: str, module: Any) -> None:
    """InvalidRequest for a flag of another task."""
    known = _SHARED | module.FLAGS
    if module.TAKES_REQUEST:
        request = argparse.ArgumentParser()
        add_request_flags(request)
        known |= vars(request.parse_args([])).keys()
    for name, value in vars(arguments).items():
        if value is not None and name not in known:
            raise InvalidRequest(f"{flag_of(name)} is not for --task {task}; leave it out.")


def on_terminal() -> bool:
    """Is somebody watching?"""
    return sys.stdout.isatty()


def _show(table: Table) -> None:
    """On a terminal: the same table, as wide as the window."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    console = Console(highlight=False, markup=False)
    head, *rows = table.cells()
    drawn = Drawn(*head, box=box.MARKDOWN, header_style="bold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
    for note in table.notes:
        console.print(note)


def _machine(seconds: float) -> str:
    """What it ran on and how long it took, for the record."""
    import torch

    import anyorder

    place = f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
    if torch.cuda.is_available():
        place = torch.cuda.get_device_name()
    return f"{seconds:.0f} s on {place}; anyorder {anyorder.__version__}, torch {torch.__version__}"

"""Models on this machine and how to get them.

list          the named models, and which of them are here
pull NAME     download one, once
show MODEL    facts about a named model, a folder or a .gguf file
rm NAME       delete a named model's files
pack RUN DIR  write a small copy of a trained model: 8 bits a weight, with recipe and metrics
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from anyorder.cli.methods import print_table
from anyorder.cli.terminal import note, progress
from anyorder.core.errors import UnknownName, UserError
from anyorder.model import catalog

_ACTIONS = ("list", "pull", "show", "rm", "pack")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which model."""
    parser.add_argument("action", metavar="ACTION", help="list, pull, show, rm or pack")
    parser.add_argument("name", metavar="MODEL", nargs="?", help="not for list; a folder for pack")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="that pack writes")
    parser.add_argument("--description", metavar="TEXT", help="of what pack writes, a few words")
    parser.add_argument("--licence", metavar="NAME", help="of what pack writes [Apache-2.0]")
    parser.add_argument("--json", action="store_true", help="print JSON (list and show)")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    action, name = arguments.action, arguments.name
    if action not in _ACTIONS:
        raise UnknownName("models action", action, _ACTIONS)
    if (action == "list") != (name is None):
        wants = "takes no name" if action == "list" else "needs a model's name"
        raise UserError(f"`anyorder models {action}` {wants}; `anyorder models list` shows them.")
    if action == "pack":
        _pack(arguments)
        return 0
    for flag in ("folder", "description", "licence"):
        if (value := getattr(arguments, flag)) is not None:
            raise UserError(f"{value!r} is for `anyorder models pack`; leave it out.")
    if action == "list":
        _list(arguments.json)
    elif action == "pull":
        _pull(name)
    elif action == "show":
        _show(name, arguments.json)
    else:
        freed = catalog.remove(name)
        note(f"removed {name}, {_size(freed)} freed")
    return 0


def _list(as_json: bool) -> None:
    models = catalog.list_models()
    if as_json:
        print(json.dumps([_data(facts) for facts in models], ensure_ascii=False))
        return
    rows = [("model", "size", "here", "description")]
    for facts in models:
        here = "no" if facts.path is None else "yes"
        rows.append((facts.name, _size(facts.num_bytes), here, facts.description))
    print_table(rows)


def _pull(name: str) -> None:
    shown = progress()
    try:
        path = catalog.pull(name, progress=lambda done, total: shown("downloading", done, total))
    finally:
        shown.close()
    note(f"{name} is at {path}")


def _pack(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from anyorder.model.shipping import pack

    if arguments.folder is None or arguments.description is None:
        raise UserError(
            "`anyorder models pack` needs a run or model, the folder to write, and --description."
        )
    num_bytes = pack(
        Path(arguments.name),
        Path(arguments.folder),
        description=arguments.description,
        licence=arguments.licence or "Apache-2.0",
    )
    note(f"{arguments.folder} holds {_size(num_bytes)}")


def _show(name: str, as_json: bool) -> None:
    facts = catalog.show(name)
    if as_json:
        print(json.dumps(_data(facts), ensure_ascii=False))
        return
    rows = []
    for field, value in _data(facts).items():
        if field == "num_bytes":
            value = _size(facts.num_bytes)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif value is None:
            value = "not on this machine" if field == "path" else "unknown"
        rows.append((field.removeprefix("num_").replace("_", " "), str(value)))
    print_table(rows)


def _data(facts: catalog.ModelFacts) -> dict[str, Any]:
    data = dataclasses.asdict(facts)
    return {**data, "path": None if facts.path is None else str(facts.path)}


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"

"""Write docs/methods.md from the methods themselves; with --check, only say whether it is current.

Everything in the page comes from a method's docstrings, fields and class attributes, and from the
fields of `Request`. There is no second place to keep up to date.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import sys
from pathlib import Path

import anyorder.methods
from anyorder.core import lookup
from anyorder.core.options import Option, describe
from anyorder.core.request import Request
from anyorder.methods import MethodInfo

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """\
# Decoding methods

<!-- Written by scripts/generate_docs.py. Edit the methods instead, then run `make docs`. -->

A method is a loop around one question to the model: which positions to ask about next, and which
answers to make final. Choose one with `--method` on the command line or `method=` in Python, and
set its options with `-o name=value` or `options={"name": value}`. *Exact* methods produce the
model's own distribution or, for a search, exactly what they state.
"""
CONTROLS = """\
## Controls that all methods share

Fields of `anyorder.Request`, and keywords of `engine.generate`. Fields that take lists, mappings or
objects are described in `core/request.py`: {others}.
"""


def spelled(default: object) -> str:
    """A default as it is written on the command line."""
    if default is dataclasses.MISSING:
        return "(required)"
    if default is None or isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) or "(empty)"


def option_table(options: tuple[Option, ...]) -> str:
    """One row per option."""
    rows = ["| option | allowed | default | |", "|---|---|---|---|"]
    for option in options:
        default = option.default if option.folder is None else lookup.name_of(option.default)
        cells = [f"`{option.name}`", option.allowed, spelled(default), option.description]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def section(method: MethodInfo) -> str:
    """A method's own part of the page: its module's docstring and its options."""
    module = importlib.import_module(f"anyorder.methods.{method.name}")
    parts = [f"## {method.name}\n", f"{inspect.getdoc(module)}\n"]
    if method.options:
        parts.append(option_table(method.options))
    for option in method.options:
        for name in lookup.names(option.folder) if option.folder is not None else ():
            parts.append(part_section(option, name))
    return "\n".join(parts)


def part_section(option: Option, name: str) -> str:
    """One of the values of an option that is itself an object."""
    assert option.folder is not None
    cls = lookup.find(option.folder, name, kind=option.name)
    module = inspect.getdoc(importlib.import_module(cls.__module__))
    parts = [f"### {option.name}={name}\n", f"{module}\n"]
    options = describe(cls)
    if options:
        table = option_table(options).replace("| `", f"| `{option.name}.")
        parts.append(table)
    return "\n".join(parts)


def page() -> str:
    """The whole page."""
    found = anyorder.methods.methods()
    rows = ["| method | | needs | exact |", "|---|---|---|---|"]
    for method in found:
        link = f"[{method.name}](../src/anyorder/methods/{method.name}.py)"
        exact = "yes" if method.exact else "no"
        rows.append(f"| {link} | {method.summary} | {method.needs.text} | {exact} |")
    options = describe(Request)
    described = {option.name for option in options} | {"prompt"}
    others = [f"`{f.name}`" for f in dataclasses.fields(Request) if f.name not in described]
    controls = CONTROLS.format(others=", ".join(others))
    parts = [HEAD, "\n".join(rows) + "\n", *map(section, found), controls, option_table(options)]
    return "\n".join(parts)


def main(arguments: list[str], path: Path = PAGE) -> int:
    """Write the page, or with --check compare it; 1 if it is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    check = parser.parse_args(arguments).check
    new = page()
    old = path.read_text("utf-8") if path.exists() else ""
    if check:
        difference = difflib.unified_diff(
            old.splitlines(),
            new.splitlines(),
            "docs/methods.md",
            "what the source says",
            lineterm="",
        )
        for line in difference:
            print(line, file=sys.stderr)
        if old != new:
            print("docs/methods.md is stale; run `make docs`.", file=sys.stderr)
        return int(old != new)
    path.parent.mkdir(exist_ok=True)
    path.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write the generated pages of docs; with --check, only say whether they are current.

Everything in methods.md and recipes.md comes from docstrings, fields and class attributes of
methods, objectives, kinds of networks, `Request` and `Recipe`, and matrix.md from trying every
method with every feature, as the tests do. There is no second place to keep up to date.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import anyorder.methods
from anyorder.core import lookup
from anyorder.core.options import Option, describe
from anyorder.core.request import Request
from anyorder.methods import MethodInfo
from anyorder.training.config import Recipe
from anyorder.training.readers import Source

DOCS = Path(__file__).resolve().parent.parent / "docs"
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

RECIPES_HEAD = """\
# Recipes

<!-- Written by scripts/generate_docs.py. Edit the sources instead, then run `make docs`. -->

A recipe is a TOML file that says what `anyorder train` does. [training.md](training.md) shows how;
these are all the fields. A misspelt one is refused with the nearest name. Paths are seen from the
recipe's own folder. `extends = "OTHER.toml"`, above the sections, takes every field of another
recipe but those that are given here; a section that names another kind or objective starts anew.
"""

MATRIX_HEAD = """\
# What every method can do

<!-- Written by scripts/generate_docs.py, which tries it. Run `make docs` after a change. -->

Each method was tried with each feature on tiny networks whose answer is known, and what came out
was checked: a *yes* means that the feature did what it says, not that it was accepted. *no* means
that the request is refused before anything runs, by the error below; nothing is ignored silently. A
dash means that there is nothing to refuse: the method has no such thing to tell, share or stream.

Low-rank additions (LoRA, DoRA) are merged into a model when it is loaded, so every method runs on
them.
"""


def spelled(default: object) -> str:
    """A default as it is written on the command line."""
    if default is dataclasses.MISSING:
        return "(required)"
    if default is None or isinstance(default, bool):
        return str(default).lower()
    if default == ():
        return "(empty)"
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) or "(empty)"


def option_table(options: tuple[Option, ...]) -> str:
    """One row per option."""
    rows = ["| option | allowed | default | |", "|---|---|---|---|"]
    for option in options:
        plain = option.folder is None or option.several
        default = option.default if plain else lookup.name_of(option.default)
        allowed = "a list" if option.kind is object else option.allowed
        cells = [f"`{option.name}`", allowed, spelled(default), option.description]
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


def methods_page() -> str:
    """docs/methods.md"""
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


def found_section(folder: str, name: str, kind: str) -> str:
    """An objective or a kind of network: its module's docstring and its options."""
    cls = lookup.find(folder, name, kind=kind)
    module = importlib.import_module(cls.__module__)
    place = f"../src/anyorder/{folder}/{name}.py"
    parts = [f"### [{name}]({place})\n", f"{inspect.getdoc(module)}\n"]
    options = describe(cls)
    if options:
        parts.append(option_table(options))
    for option in options:
        if option.folder in (None, folder):  # what it is a part of is on this page anyway
            continue
        for inner in lookup.names(option.folder):
            parts.append(part_section(option, inner).replace("### ", "#### ", 1))
    return "\n".join(parts)


def objective_table(names: tuple[str, ...]) -> str:
    """One row per objective."""
    rows = ["| objective | needs | |", "|---|---|---|"]
    for name in names:
        cls = lookup.find("training/objectives", name, kind="objective")
        needs = [
            thing if needed is True else f"perhaps {thing}"  # a property: its options decide
            for thing, needed in (
                ("a mask token", cls.needs_mask_token),
                ("a teacher", cls.needs_teacher),
            )
            if needed is not False
        ]
        summary = (inspect.getdoc(cls) or "").splitlines()[0]
        rows.append(f"| [{name}](#{name}) | {', '.join(needs)} | {summary} |")
    return "\n".join(rows) + "\n"


def recipes_page() -> str:
    """docs/recipes.md"""
    hints = typing.get_type_hints(Recipe)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    parts = [RECIPES_HEAD]
    for name in fields:
        cls = next((c for c in (hints[name], *typing.get_args(hints[name])) if is_section(c)), None)
        if cls is None:
            continue
        title = (cls.__doc__ or "").splitlines()[0].partition(": ")[2]
        if name == "model":
            parts.append("## [model]: the network\n\n`kind` says which one, decoder unless told.\n")
            names = lookup.names("training/networks")
            parts += [found_section("training/networks", kind, "kind") for kind in names]
        elif name == "objective":
            parts.append("## [objective]: what is learnt\n\n`name` says which one.\n")
            names = lookup.names("training/objectives")
            parts.append(objective_table(names))
            parts += [found_section("training/objectives", each, "objective") for each in names]
        else:
            parts += [f"## [{name}]: {title}\n", option_table(describe(cls))]
        if name == "data":
            parts.append("A source is a path, or a table with these fields:\n")
            parts.append(option_table(describe(Source)))
    return "\n".join(parts)


def matrix_page() -> str:
    """docs/matrix.md"""
    sys.path.insert(0, str(DOCS.parent))  # the trials are the tests' own
    from tests.methods.matrix import FEATURES, GROUPS, METHODS, label, tried

    parts = [MATRIX_HEAD]
    others = [name for name in lookup.names("methods") if name not in METHODS]
    if others:
        parts.append(
            f"Not tried here, since they run on networks of their own: {', '.join(others)}.\n"
        )
    for title, features in GROUPS.items():
        heads = "".join(f" {label(feature)} |" for feature in features)
        rows = [f"| method |{heads}", "|---|" + "---|" * len(features)]
        for method in METHODS:
            found = [tried(method, feature) for feature in features]
            words = ("no" if isinstance(one, str) else "yes" if one else "–" for one in found)
            rows.append(f"| {method} | {' | '.join(words)} |")
        parts += [f"## {title}\n", "\n".join(rows) + "\n"]
    parts.append("## The errors\n")
    for method in METHODS:
        errors: dict[str, list[str]] = {}
        for feature in FEATURES:
            outcome = tried(method, feature)
            if isinstance(outcome, str):
                errors.setdefault(outcome, []).append(label(feature))
        rows = [f"- {', '.join(names)}: {error}" for error, names in errors.items()]
        if rows:
            parts.append("\n".join([f"### {method}\n", *rows]) + "\n")
    return "\n".join(parts)


def is_section(hint: object) -> bool:
    """Is it the class of a recipe's section?"""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


PAGES: dict[str, Callable[[], str]] = {
    "methods.md": methods_page,
    "recipes.md": recipes_page,
    "matrix.md": matrix_page,
}


def main(arguments: list[str], folder: Path = DOCS) -> int:
    """Write the pages, or with --check compare them; 1 if one is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    check = parser.parse_args(arguments).check
    stale = 0
    for name, page in PAGES.items():
        path, new = folder / name, page()
        old = path.read_text("utf-8") if path.exists() else ""
        if not check:
            folder.mkdir(exist_ok=True)
            path.write_text(new, "utf-8")
        elif old != new:
            lines = (old.splitlines(), new.splitlines(), f"docs/{name}", "what the source says")
            for line in difflib.unified_diff(*lines, lineterm=""):
                print(line, file=sys.stderr)
            print(f"docs/{name} is stale; run `make docs`.", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

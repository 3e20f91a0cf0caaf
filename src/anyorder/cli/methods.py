"""The decoding methods, or one method's options with bounds and descriptions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence as Seq
from typing import Any

from anyorder.core import lookup
from anyorder.core.errors import UnknownName
from anyorder.core.options import Option, describe, json_schema
from anyorder.methods import MethodInfo, methods


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which method, and the form of the answer."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="one method; none: all of them")
    parser.add_argument("--json", action="store_true", help="options as JSON Schema")


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or one method's page."""
    known = {info.name: info for info in methods()}
    if arguments.name is not None and arguments.name not in known:
        raise UnknownName("method", arguments.name, known)
    chosen = list(known.values()) if arguments.name is None else [known[arguments.name]]
    if arguments.json:
        data = [_data(info) for info in chosen]
        print(json.dumps(data if arguments.name is None else data[0], ensure_ascii=False))
    elif arguments.name is None:
        rows = [("method", "exact", "needs", "what it does")]
        for info in chosen:
            exact = "yes" if info.exact else "no"
            rows.append((info.name, exact, info.needs.text, info.summary))
        print_table(rows)
    else:
        _print_method(chosen[0])
    return 0


def print_table(rows: Seq[tuple[str, ...]]) -> None:
    """Left-aligned columns, as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_method(info: MethodInfo) -> None:
    print(f"{info.name}: {info.summary}")
    print(f"exact: {'yes' if info.exact else 'no'}; needs {info.needs.text}.")
    if not info.options:
        print("It has no options.")
        return
    print("\noptions (-o NAME=VALUE):")
    _print_options(info.options)
    for option in info.options:
        folder = option.folder
        for name in () if folder is None else lookup.names(folder):
            part = lookup.find(folder or "", name, kind=option.name)
            print(f"\n{option.name}={name}: {(part.__doc__ or '').strip().splitlines()[0]}")
            _print_options(describe(part), prefix=f"{option.name}.")


def _print_options(options: Seq[Option], prefix: str = "") -> None:
    rows = []
    for option in options:
        default = option.default if option.folder is None else lookup.name_of(option.default)
        allowed = option.allowed
        rows.append((f"  {prefix}{option.name}", f"{default}", allowed, option.description))
    if rows:
        print_table(rows)


def _data(info: MethodInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "summary": info.summary,
        "exact": info.exact,
        "needs": info.needs.text,
        "options": json_schema(lookup.find("methods", info.name, kind="method")),
    }

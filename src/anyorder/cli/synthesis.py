"""`anyorder data synthesize`: its flags, and what they come to."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.cli.evaluations.data import BUILT_IN, built_in, open_data
from anyorder.cli.files import read_text
from anyorder.cli.model_flags import add_model_flags, open_engine
from anyorder.cli.numbers import whole_number
from anyorder.cli.request_flags import add_request_flags, make_request, request_fields
from anyorder.cli.terminal import note, progress
from anyorder.core.errors import InvalidRequest, UserError

if TYPE_CHECKING:
    from anyorder.core.request import Request
    from anyorder.engine.engine import Engine

FLAGS = ("prompts", "pairs", "num", "chat", "tokens", "finished_only")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where prompts come from, how much is made, and every control of a request."""
    add = parser.add_argument_group("synthesize").add_argument
    add(
        "--prompts",
        metavar="FILE|builtin:NAME",
        action="append",
        help="a prompt a line; .jsonl: the field prompt; builtin: instructions, lists or sections",
    )
    add(
        "--pairs",
        metavar="DATA",
        help="instead: the sources of pairs, from a .tsv, a corpus or a recipe's training part",
    )
    add("--num", metavar="N", help="lines to make; prompts go round [one for each prompt]")
    add(
        "--chat",
        action=argparse.BooleanOptionalAction,
        help="prompts are a user's messages [if the model has a chat template; not pairs]",
    )
    add("--tokens", action="store_const", const=True, help="token ids in every line too")
    add(
        "--finished-only",
        action="store_const",
        const=True,
        help="leave out what was cut off at --max-new-tokens",
    )
    add_model_flags(parser)
    add_request_flags(parser)


def run(arguments: argparse.Namespace, file: Path) -> int:
    """Make what is missing of the file; print its name."""
    if file.suffix not in (".jsonl", ".ndjson"):
        raise InvalidRequest(f"synthetic text goes to a file ending in .jsonl, got {str(file)!r}.")
    request = _controls(arguments)
    prompts, separator = _prompts(arguments)
    engine = open_engine(arguments)
    if arguments.pairs is not None:
        prompts = _readable(engine, prompts)
    num = whole_number("--num", arguments.num, len(prompts))
    template = engine.tokenizer is not None and engine.tokenizer.chat_template is not None
    if arguments.chat and not template:
        raise InvalidRequest(f"{engine.abilities.name} has no chat template; leave --chat out.")
    usual = template and arguments.pairs is None
    from anyorder.evaluation.synthesis import Synthesis, synthesize

    shown = progress()
    try:
        made = synthesize(
            engine,
            Synthesis(
                prompts=tuple(prompts),
                suffix="" if engine.abilities.source_length else separator,
                num=num,
                controls=request,
                chat=usual if arguments.chat is None else arguments.chat,
                keep_tokens=bool(arguments.tokens),
                finished_only=bool(arguments.finished_only),
            ),
            file,
            progress=shown,
        )
    finally:
        shown.close()
    left_out = " and left out" if arguments.finished_only else ""
    note(f"{made.num_new} lines made; {made.num_unfinished} cut off at the limit{left_out}")
    note(f"{made.num_lines} lines in all")
    print(file)
    return 0


def _controls(arguments: argparse.Namespace) -> Request:
    fields = request_fields(arguments)
    if fields.get("n", 1) != 1:
        raise InvalidRequest(f"every line is one text: -n must be 1, got {fields['n']}.")
    return make_request("", {"temperature": 1.0, **fields})


def _prompts(arguments: argparse.Namespace) -> tuple[list[str], str]:
    """And what stands between a source and its target for a model without an encoder."""
    if (arguments.prompts is None) == (arguments.pairs is None):
        raise InvalidRequest("give either --prompts or --pairs; --prompts builtin:lists, say.")
    separator = ""
    if arguments.pairs is not None:
        data = open_data([arguments.pairs], None, usual="train")
        found = [document.prompt for document in data.documents(pairs=True)]
        separator = data.sources[0].separator
    else:
        found = [prompt for name in arguments.prompts for prompt in _named(name)]
    if not found:
        raise UserError(f"{arguments.pairs or ' '.join(arguments.prompts)} has no prompts.")
    return found, separator


def _readable(engine: Engine, sources: list[str]) -> list[str]:
    """Without those that are too long for the model's encoder, as they are when it is trained."""
    from anyorder.evaluation.generation import reads

    found = [source for source in sources if reads(engine, source)]
    if len(found) < len(sources):
        note(f"{len(sources) - len(found)} of {len(sources)} sources are too long for the encoder")
    if not found:
        raise UserError(f"the encoder of {engine.abilities.name} can read none of the sources.")
    return found


def _named(name: str) -> list[str]:
    if name.startswith(BUILT_IN):
        return list(built_in(name))
    path = Path(name)
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if path.suffix not in (".jsonl", ".ndjson"):
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        prompt = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(prompt, str):
            raise UserError(f"{path} line {number} is not an object with a text called 'prompt'.")
        found.append(prompt)
    return found

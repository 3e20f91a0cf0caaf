"""Check on a model that extending a text never changes earlier predictions.

A text is scored in one pass, in chunks and token by token through the cache, and prefix by prefix;
then every token in turn is replaced, to see which predictions move. Exit code 1 if any difference
is larger than the tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from anyorder.cli.files import text_argument, write_text
from anyorder.cli.model_flags import add_model_flags, open_model
from anyorder.core.errors import InvalidRequest

_TEXT = "Causal models read from left to right: what comes later never changes what came before."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text, the tolerance, and where the picture goes."""
    add = parser.add_argument
    add("text", metavar="TEXT", nargs="?", default=_TEXT, help='"-": stdin; none: an example')
    add("--output", metavar="FILE.svg", help="draw who sees whom, and the differences")
    add("--tolerance", metavar="X", default="1e-3", help="largest allowed difference, nats [1e-3]")
    add("--json", action="store_true", help="print one JSON object")
    add_model_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw."""
    tolerance = _tolerance(arguments.tolerance)
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and output.suffix != ".svg":
        raise InvalidRequest(f"the picture goes to a file ending in .svg, got {str(output)!r}.")
    text = text_argument(arguments.text, "text")
    model = open_model(arguments)
    from anyorder.engine.engine import Engine
    from anyorder.evaluation.inspect import inspect

    found = inspect(
        lambda batch, cache: Engine(model, max_batch_tokens=batch, cache_tokens=cache),
        text,
        tolerance=tolerance,
    )
    if output is not None:
        from anyorder.evaluation.inspect_picture import inspect_svg

        write_text(output, inspect_svg(found))
    if arguments.json:
        data = dataclasses.asdict(found)
        del data["influence"]  # NaN, where there is none, is no JSON
        data |= {"backward_influence": found.backward_influence, "passed": found.passed}
        print(json.dumps(data, ensure_ascii=False))
    else:
        print(f"{len(found.tokens)} tokens, compared with one parallel pass")
        for comparison in found.comparisons:
            print(
                f"  {comparison.name:<18} largest difference {comparison.largest:.2e} nats, "
                f"{comparison.num_passes} passes"
            )
        print(f"  later tokens moved earlier predictions by {found.backward_influence:.2e} nats")
        print(f"{'PASS' if found.passed else 'FAIL'} (tolerance {tolerance:g})")
    return 0 if found.passed else 1


def _tolerance(text: str) -> float:
    try:
        tolerance = float(text)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance <= 1:
        raise InvalidRequest(f"--tolerance must be a number from 0 to 1, got {text!r}.")
    return tolerance

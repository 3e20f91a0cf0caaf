"""`anyorder VERB ...`: finds the verb's file and turns mistakes into one line.

Exit codes: 0 done; 1 a request or a check failed; 2 the user's mistake; 130 interrupted; 141 the
reader of the output went away. A verb is a module of this folder with `add_arguments(parser)` and
`run(arguments)`; it is imported only when called.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence as Seq

from anyorder.cli.parser import Parser
from anyorder.cli.terminal import note
from anyorder.core.errors import AnyorderError, UnknownName, UserError

VERBS = {
    "generate": "generate text for a prompt",
    "chat": "talk with a model",
    "compare": "one prompt by several methods, side by side",
    "score": "log-probabilities of a text",
    "inspect": "check on a model that later tokens never change earlier predictions",
    "methods": "the decoding methods and their options",
    "train": "train a model as a recipe says, or go on training it",
    "models": "list, pull, show and remove models",
    "eval": "measure models on held-out text",
    "bench": "measure speed and memory, beside other engines if you like",
    "data": "texts to train on: list, fetch and synthesize them",
    "serve": "answer requests over HTTP, as OpenAI's API does",
    "doctor": "versions, devices, kernels and folders on this machine",
}

_EXAMPLES = """examples:
  anyorder generate "The capital of France is" --max-new-tokens 8
  anyorder generate "Name a colour." --chat --json-schema '{"type": "string"}'
  anyorder chat
"""


def main(arguments: Seq[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What Python still holds for stdout would raise again at exit; it goes nowhere instead.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except AnyorderError as error:
        note(f"anyorder: {' '.join(str(error).split())}")
        return 2 if isinstance(error, UserError) else 1


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0].startswith("-"):
        return _without_verb(arguments)
    verb = arguments[0]
    if verb not in VERBS:
        raise UnknownName("command", verb, VERBS)
    module = importlib.import_module(f"anyorder.cli.{verb}")
    parser = Parser(prog=f"anyorder {verb}", description=module.__doc__ or "")
    module.add_arguments(parser)
    return int(module.run(parser.parse(arguments[1:])))


def _without_verb(arguments: list[str]) -> int:
    import anyorder

    summary = (anyorder.__doc__ or "").partition("\n")[0]
    listing = "\n".join(f"  {verb:<12}{does}" for verb, does in VERBS.items())
    parser = Parser(
        prog="anyorder",
        usage="anyorder COMMAND ...",
        description=f"{summary}\n\ncommands:\n{listing}",
        epilog=f"{_EXAMPLES}\n`anyorder COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"anyorder {anyorder.__version__}")
    parser.parse(arguments)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())

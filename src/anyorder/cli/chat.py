"""Talk with a model, turn by turn.

Ctrl-C stops an answer, Ctrl-D leaves. A message that begins with three double quotes goes on until
three more. Lines that begin with a slash are commands, `/help` lists them. With stdin from a pipe
every line is a turn.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from anyorder.cli.chat_commands import Commands
from anyorder.cli.conversation import Conversation
from anyorder.cli.model_flags import add_model_flags, open_engine
from anyorder.cli.request_flags import add_request_flags, make_request, request_fields
from anyorder.cli.terminal import cost_line, dim, note, visible
from anyorder.core.errors import AnyorderError, UserError

_QUOTES = '"""'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The system message, and every control over the answers."""
    parser.usage = "%(prog)s [-m MODEL] [--method NAME] [-o NAME=VALUE ...] [FLAGS]"
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--stats", action="store_true", help="costs after every answer, on stderr")
    add_model_flags(parser)
    add_request_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, answer, repeat."""
    fields = request_fields(arguments)
    make_request("", fields)
    engine = open_engine(arguments)
    conversation = Conversation(engine, system=arguments.system, fields=fields)
    commands = Commands(conversation)
    on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if on_terminal:
        note(f"{engine.abilities.name}. /help lists the commands, Ctrl-D leaves.")
    for text in _turns():
        try:
            question = commands.run(text) if text.startswith("/") else text
            if commands.leaving:
                break
            if question is None:
                continue
            _answer(conversation, question)
            if conversation.completion is not None and (on_terminal or arguments.stats):
                dim(cost_line(conversation.completion.report))
        except AnyorderError as error:
            note(f"anyorder: {' '.join(str(error).split())}")
    return 0


def _answer(conversation: Conversation, question: str) -> None:
    begun = False
    with _interruptible() as stopped:
        try:
            for piece in conversation.ask(question, stopped):
                begun = True
                sys.stdout.write(visible(piece))
                sys.stdout.flush()
        finally:
            if begun:
                print(flush=True)
        if stopped():
            dim("(stopped)")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C only makes the yielded function true: no tick is cut in the middle. A second
    Ctrl-C interrupts as usual."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _turns() -> Iterator[str]:
    """What the user says: lines that are not blank, or several lines between triple quotes."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and remembers them
    while (line := _line("> ")) is not None:
        if line.startswith(_QUOTES):
            line = line.removeprefix(_QUOTES)
            while not line.rstrip().endswith(_QUOTES):
                more = _line("... ")
                if more is None:
                    return
                line += f"\n{more}"
            line = line.rstrip().removesuffix(_QUOTES)
        if line.strip():
            yield line


def _line(prompt: str) -> str | None:
    """One line without its end; None at the end of input."""
    while True:
        try:
            if sys.stdin.isatty() and sys.stdout.isatty():
                return input(prompt)
            line = sys.stdin.buffer.readline()
            if not line:
                return None
            return line.decode("utf-8").rstrip("\r\n")
        except EOFError:
            note("")
            return None
        except UnicodeDecodeError:
            raise UserError("a line on stdin is not UTF-8 text.") from None
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            note("\nCtrl-D or /exit leaves.")

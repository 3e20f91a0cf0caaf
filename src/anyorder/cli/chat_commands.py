"""The slash commands of `anyorder chat`: one method each, its docstring is its line in /help."""

from __future__ import annotations

import shlex
from pathlib import Path

from anyorder.cli.conversation import Conversation
from anyorder.cli.parser import Parser
from anyorder.cli.request_flags import add_request_flags, flag_of, method_options, request_fields
from anyorder.cli.terminal import cost_line, note
from anyorder.cli.traces import trace_path, write_trace
from anyorder.core.errors import UnknownName, UserError
from anyorder.core.options import describe
from anyorder.core.request import Completion, Request

_ALIASES = {"stop_token": "stop_tokens", "bad_word": "bad_words", "choice": "guide"}
_ALIASES |= dict.fromkeys(("json_schema", "regex", "lark", "choices"), "guide")
"""Settings whose flag is not called like the field of Request that it fills."""


class Commands:
    """Runs the commands on a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self.leaving = False
        """Set by /exit."""
        self._known = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def run(self, line: str) -> str | None:
        """Run `/name rest`; returns a question if there is one to answer now."""
        name, _, rest = line[1:].partition(" ")
        if name not in self._known:
            raise UnknownName("command", f"/{name}", [f"/{known}" for known in self._known])
        answer: str | None = self._known[name](rest.strip())
        return answer

    def _do_help(self, rest: str) -> None:
        """/help: this list"""
        for command in self._known.values():
            usage, _, meaning = (command.__doc__ or "").partition(": ")
            note(f"{usage:<30}{meaning}")

    def _do_set(self, rest: str) -> None:
        """/set NAME VALUE: a control, as in `generate --help`; /set NAME: its default; /set: all"""
        name, _, value = rest.partition(" ")
        name = name.lstrip("-").replace("-", "_")
        if not name:
            for field, current in self._conversation.fields.items():
                note(f"{field} = {current!r}")
            return
        parser = Parser(prog="/set", description="")
        add_request_flags(parser)
        known = {action.dest for action in parser._actions} - {"help", "option", "method"}
        if name not in known:
            raise UnknownName("setting", name, known)
        fields = dict(self._conversation.fields)
        fields.pop(_ALIASES.get(name, name), None)
        if value.strip():
            fields |= request_fields(parser.parse(_as_flags(name, value.strip())))
        self._conversation.set_fields(fields)

    def _do_method(self, rest: str) -> None:
        """/method NAME [KEY=VALUE]: decode by this method from now on"""
        name, *assignments = _words(rest)
        options = method_options(name, assignments)
        fields = {**self._conversation.fields, "method": name, "options": options}
        self._conversation.set_fields(fields)

    def _do_system(self, rest: str) -> None:
        """/system TEXT: replace the system message; no TEXT: remove it"""
        self._conversation.system = rest or None

    def _do_regen(self, rest: str) -> str:
        """/regen: answer the last question once more, with the next seed"""
        question = self._conversation.undo()
        fields = self._conversation.fields
        self._conversation.set_fields({**fields, "seed": fields.get("seed", 0) + 1})
        return question

    def _do_undo(self, rest: str) -> None:
        """/undo: forget the last question and its answer"""
        self._conversation.undo()

    def _do_clear(self, rest: str) -> None:
        """/clear: forget everything that was said"""
        self._conversation.clear()

    def _do_save(self, rest: str) -> None:
        """/save FILE: write the chat as JSON"""
        self._conversation.save(_path(rest))

    def _do_load(self, rest: str) -> None:
        """/load FILE: go on from a saved chat"""
        self._conversation.load(_path(rest))
        note(f"{len(self._conversation.turns) // 2} questions and answers")

    def _do_stats(self, rest: str) -> None:
        """/stats: what the last answer cost, and how much of the prompt was cached"""
        note(cost_line(self._last().report))

    def _do_trace(self, rest: str) -> None:
        """/trace FILE: draw how the last answer came about (.svg, .html or .json)"""
        model, question = self._conversation.engine.abilities.name, self._conversation.turns[-2:-1]
        completion = self._last()
        path = trace_path(str(_path(rest)))
        write_trace(path, completion, model=model, prompt=question[0]["content"] + "\n")

    def _do_exit(self, rest: str) -> None:
        """/exit: leave"""
        self.leaving = True

    def _last(self) -> Completion:
        completion = self._conversation.completion
        if completion is None:
            raise UserError("there is no finished answer to tell about.")
        return completion


def _as_flags(name: str, value: str) -> list[str]:
    """`/set name value` as the flags of `generate`."""
    for option in describe(Request):
        if option.name == name and option.kind is bool:
            return [flag_of(name) if option.parse(value) else flag_of(f"no_{name}")]
    if name == "choices":
        return [flag_of(name), *_words(value)]
    return [f"{flag_of(name)}={value}"]


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text!r} cannot be split into words: {error}.") from None
    if not words:
        raise UserError("a name is missing; /help shows how the command is written.")
    return words


def _path(text: str) -> Path:
    if not text:
        raise UserError("a file name is missing; /help shows how the command is written.")
    return Path(text).expanduser()

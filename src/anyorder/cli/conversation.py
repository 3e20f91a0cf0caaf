"""A chat's state: what was said, how the next answer is made, and what the last one cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.cli.files import read_text, write_text
from anyorder.cli.request_flags import make_request
from anyorder.core.errors import UserError
from anyorder.core.request import Completion, Request

if TYPE_CHECKING:
    from anyorder.engine.engine import Engine

Message = dict[str, str]


class Conversation:
    """Messages and settings of one chat. A message is kept only if it got an answer."""

    def __init__(self, engine: Engine, *, system: str | None, fields: dict[str, Any]) -> None:
        self.engine = engine
        self.system = system
        self.fields = fields
        """Fields of Request for every answer."""
        self.turns: list[Message] = []
        """User and assistant in turn, the system message apart."""
        self.completion: Completion | None = None
        """The last answer; None before the first, and after one that was stopped."""
        make_request("", fields)

    @property
    def messages(self) -> list[Message]:
        """All of it, as the chat template takes it."""
        return [*_system(self.system), *self.turns]

    def set_fields(self, fields: dict[str, Any]) -> None:
        """Take new settings, all of them or, if one makes no sense, none."""
        make_request("", fields)
        self.fields = fields

    def ask(self, text: str, stopped: Callable[[], bool]) -> Iterator[str]:
        """The answer, piece by piece. Once `stopped()` is true it ends, and what was said stays."""
        question = {"role": "user", "content": text}
        request = make_request([*self.messages, question], self.fields)
        answer = ""
        self.completion = None
        with closing(self._texts(request, stopped)) as texts:
            for piece in texts:
                answer += piece
                yield piece
        if answer or self.completion is not None:
            self.turns += [question, {"role": "assistant", "content": answer}]

    def _texts(self, request: Request, stopped: Callable[[], bool]) -> Generator[str, None, None]:
        # Ticks rather than Engine.stream: a tick without events must not keep a stop waiting.
        handle = self.engine.submit(request)
        try:
            while not handle.done and not stopped():
                self.engine.tick()
                while handle.events:
                    event = handle.events.popleft()
                    if event.choice == 0:
                        yield event.text
            if handle.done:
                self.completion = handle.result()
        finally:
            self.engine.abort(handle)

    def undo(self) -> str:
        """Forget the last question and its answer; returns the question."""
        if not self.turns:
            raise UserError("nothing has been said yet.")
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        self.completion = None
        return question

    def clear(self) -> None:
        """Forget everything but the system message and the settings."""
        self.turns.clear()
        self.completion = None

    def save(self, path: Path) -> None:
        """Write the messages as JSON."""
        data = {"model": self.engine.abilities.name, "messages": self.messages}
        write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def load(self, path: Path) -> None:
        """Go on from messages that `save` wrote, or nothing changes."""
        text = read_text(path)
        try:
            messages = json.loads(text)["messages"]
            spoken = [(str(message["role"]), message["content"]) for message in messages]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is no saved chat: no JSON with messages.") from None
        roles = [role for role, _ in spoken]
        if not all(isinstance(content, str) for _, content in spoken):
            raise UserError(f"{path} is no saved chat: a message's content is not text.")
        system = spoken.pop(0)[1] if roles[:1] == ["system"] else None
        if len(spoken) % 2 or [role for role, _ in spoken] != ["user", "assistant"] * (
            len(spoken) // 2
        ):
            raise UserError(f"{path} is no saved chat: user and assistant do not take turns.")
        self.system = system
        self.turns = [{"role": role, "content": content} for role, content in spoken]
        self.completion = None


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]

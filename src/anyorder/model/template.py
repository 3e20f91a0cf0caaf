"""Chat templates: messages to text, with every message's own text kept apart from the template's.

The template is a Jinja program from the model's files; it runs in `template_sandbox`. It is
rendered twice, once with the messages and once with a private-use character in place of each
content. The second rendering shows what the template itself writes and where the contents go; if
it aligns with the first, the exact place of every content is known, and nothing that a user writes
can be mistaken for the template's control tokens. Templates may trim white space around contents;
if one changes them in any other way, the places are unknown and the caller must be careful.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyorder.core.errors import InvalidRequest, TemplateError

_MAX_SOURCE = 64 << 10
_FIRST_PLACEHOLDER = 0xF0000
_MAX_MESSAGES = 65_000
_PLACEHOLDERS = re.compile("([\U000f0000-\U000ffffd])")
_MAX_DEPTH = 32


@dataclass(frozen=True, kw_only=True)
class RenderedChat:
    """A chat laid out by a template."""

    text: str
    contents: tuple[tuple[int, int], ...] | None
    """Where in `text` the messages' contents lie, in order; None if the template changed one."""
    without_contents: str
    """The same with a private-use character for each content."""
    other_texts: tuple[str, ...]
    """Every other text that came from outside: roles, names, tool calls, tools."""


class ChatTemplate:
    """A compiled chat template. Thread-safe.

    Raises `TemplateError` if the template is malformed, leaves the sandbox or takes too long, and
    `InvalidRequest` for malformed messages.
    """

    def __init__(self, source: str, *, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: further names that the template sees (bos_token, eos_token, ...)."""
        if len(source) > _MAX_SOURCE:
            raise TemplateError(f"the chat template is longer than {_MAX_SOURCE} characters.")
        from anyorder.model.template_sandbox import Sandbox

        self._variables = dict(variables or {})
        self._lock = threading.Lock()
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # a hostile template can fail the compiler in any way
            raise TemplateError(f"the chat template is malformed: {_one_line(error)}.") from None

    def render(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RenderedChat:
        """Lay out a chat."""
        chat = [_plain_message(number, message) for number, message in enumerate(messages)]
        if not chat:
            raise InvalidRequest("the list of messages is empty; give at least one.")
        if len(chat) > _MAX_MESSAGES:
            raise InvalidRequest(f"{len(chat)} messages are too many; at most {_MAX_MESSAGES}.")
        plain_tools = None if tools is None else [_plain(tool, "a tool") for tool in tools]
        others = {key: value for key, value in (("tools", plain_tools),) if value}
        hidden = [
            {**message, "content": chr(_FIRST_PLACEHOLDER + number)}
            if message["content"]
            else message
            for number, message in enumerate(chat)
        ]
        now = datetime.datetime.now()
        names = {**self._variables, **others, "add_generation_prompt": add_generation_prompt}
        text = self._run({**names, "messages": chat}, now)
        without = self._run({**names, "messages": hidden}, now)
        return RenderedChat(
            text=text,
            contents=_align(text, without, [message["content"] for message in chat]),
            without_contents=without,
            other_texts=tuple(_texts_outside(chat, plain_tools)),
        )

    def _run(self, names: dict[str, Any], now: datetime.datetime) -> str:
        from anyorder.model.template_sandbox import Meter

        with self._lock:
            self._sandbox.now = now
            self._sandbox.meter = Meter()
            try:
                return "".join(self._template.generate(**names))
            except Exception as error:  # a template can fail in any way that Python can
                raise TemplateError(
                    f"the chat template cannot lay out these messages: {_one_line(error)}."
                ) from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:300].rstrip(".")


# ------------------------------------------------------------------------------------- messages
def _plain_message(number: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(
            f"message {number} is a {type(message).__name__}; a message is a mapping with role and "
            "content."
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"message {number} needs a role (a text), got {role!r}.")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise InvalidRequest(f"message {number} needs a content (a text).")
    others = {
        str(key): _plain(value, f"message {number}")
        for key, value in message.items()
        if key not in ("role", "content")
    }
    return {"role": role, "content": _content_text(number, content), **others}


def _content_text(number: int, content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(
            f"the content of message {number} is a {type(content).__name__}; give a text, or a "
            "list of parts of type text."
        )
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise InvalidRequest(
                f"message {number} has a part of type {kind!r}; only parts of type 'text' can be "
                "used."
            )
        texts.append(text)
    return "".join(texts)


def _plain(value: object, where: str, depth: int = 0) -> Any:
    """A copy made of plain data, so that a template never meets another kind of object."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"{where} is nested more than {_MAX_DEPTH} deep.")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    raise InvalidRequest(f"{where} holds a {type(value).__name__}; only JSON data can be used.")


def _texts_outside(chat: list[dict[str, Any]], tools: list[Any] | None) -> Iterator[str]:
    for message in chat:
        yield from _texts({key: item for key, item in message.items() if key != "content"})
    yield from _texts(tools)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


# ------------------------------------------------------------------------------------ alignment
def _align(
    text: str, without: str, contents: list[str | None]
) -> tuple[tuple[int, int], ...] | None:
    """Places of the contents in `text`, given the rendering with placeholders."""
    literal, *rest = _PLACEHOLDERS.split(without)
    if not text.startswith(literal):
        return None
    at = len(literal)
    spans = []
    for placeholder, literal in zip(rest[::2], rest[1::2], strict=True):
        number = ord(placeholder) - _FIRST_PLACEHOLDER
        content = contents[number] if number < len(contents) else None
        for candidate in _trimmed(content or ""):
            if text.startswith(candidate + literal, at):
                break
        else:
            return None
        if candidate:
            spans.append((at, at + len(candidate)))
        at += len(candidate) + len(literal)
    return tuple(spans) if at == len(text) else None


def _trimmed(content: str) -> Iterator[str]:
    """The content as it is, and as templates trim it."""
    for characters in (None, "\n"):
        yield from (content, content.strip(characters), content.lstrip(characters))
        yield content.rstrip(characters)

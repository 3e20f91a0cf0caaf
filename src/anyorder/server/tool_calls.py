"""Calls of tools in a model's text, and a guide that leaves a model nothing else to write.

Two ways of writing a call are understood, both with the call as a JSON object of `name` and
`arguments` (or `parameters`): between <tool_call> and </tool_call>, as Hermes and Qwen write it,
and as the whole text, as LLaMA 3 does and as the guide makes any model do. JSON is parsed as JSON:
nothing that a model writes is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

from anyorder.core.request import Guide
from anyorder.server.schemas import parse_json
from anyorder.server.shapes import new_id

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's form."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


def call_guide(functions: Seq[Mapping[str, Any]]) -> Guide:
    """A JSON object that calls one of the functions with arguments that fit its parameters."""
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": function.get("parameters") or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return Guide.json_schema(options[0] if len(options) == 1 else {"anyOf": options})


class CallReader:
    """Tells calls from content, in a text that comes piece by piece."""

    def __init__(self, names: Seq[str], *, several: bool) -> None:
        """`names`: functions that there are. Without `several`, the first call is the only one."""
        self._names = names
        self._several = several
        self._held = ""
        self._is_first = True

    def push(self, text: str) -> str:
        """What is content for certain, of the text so far that was not returned yet."""
        self._held += text
        if self._is_first and self._held.lstrip()[:1] in ("", "{"):
            return ""
        self._is_first = False
        at = self._held.find(_OPEN)
        if at < 0:
            sizes = range(len(_OPEN) - 1, 0, -1)
            kept = next((n for n in sizes if self._held.endswith(_OPEN[:n])), 0)
            at = len(self._held) - kept
        shown, self._held = self._held[:at], self._held[at:]
        return shown

    def finish(self) -> tuple[str, list[Call]]:
        """The rest: content, if it is no calls after all, and the calls."""
        whole = self._call(self._held)
        if whole is not None:
            return "", [whole]
        content, calls = "", list[Call]()
        for piece in self._held.split(_OPEN)[1:]:
            inside, _, behind = piece.partition(_CLOSE)
            call = self._call(inside)
            if call is None:
                return self._held, []
            calls.append(call)
            content += behind.strip()
        if not calls:
            return self._held, []
        return content, calls if self._several else calls[:1]

    def _call(self, text: str) -> Call | None:
        value = parse_json(text)
        if not isinstance(value, dict) or value.get("name") not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return None
        return Call(id=new_id("call"), name=value["name"], arguments=arguments)

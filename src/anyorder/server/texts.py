"""Text and chat messages to token ids and back, for endpoints; InvalidRequest without a tokenizer.

A message's content never becomes a control token, whatever it says; see `model.tokenizer`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any

from anyorder.core.errors import InvalidRequest
from anyorder.engine.engine import Engine

Message = Mapping[str, Any]


class Texts:
    """The target model's tokenizer and chat template."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def require(self) -> None:
        """InvalidRequest for a model that has no tokenizer."""
        if self._engine.tokenizer is None:
            raise InvalidRequest(
                f"{self._engine.abilities.name} was loaded without a tokenizer; only token ids can "
                "be used."
            )

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, texts of control tokens included."""
        self.require()
        assert self._engine.tokenizer is not None, "it is required above"
        return self._engine.tokenizer.encode(text, add_special=add_special)

    def encode_chat(
        self,
        messages: Seq[Message],
        *,
        tools: Seq[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Ids of chat messages, as the model's template lays them out."""
        self.require()
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None, "it is required above"
        ids = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=add_generation_prompt
        )
        if tools and ids == tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt
        ):
            raise InvalidRequest(
                f"tools: the chat template of {self._engine.abilities.name} has no place for them; "
                "leave them out, or take a model that was trained to call tools."
            )
        return ids

    def decode(self, ids: Seq[int], *, skip_special: bool = True) -> str:
        """Text of ids."""
        self.require()
        assert self._engine.tokenizer is not None, "it is required above"
        return self._engine.tokenizer.decode(ids, skip_special=skip_special)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; without a tokenizer, its number."""
        if self._engine.tokenizer is None:
            return str(token).encode()
        return self._engine.tokenizer.token_bytes(token)

    def token_text(self, token: int) -> str:
        """One token as a text of its own, OpenAI's way: bytes that are no text are escaped."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def printable(self, token: int) -> str:
        """One token for a picture: what cannot be printed is escaped."""
        if self._engine.tokenizer is None:
            return str(token)
        return self._engine.tokenizer.token_text(token)

    def offsets(self, ids: Seq[int]) -> list[int]:
        """Where in the text each token begins, in characters."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        offsets, length = [], 0
        for token in ids:
            offsets.append(length)
            length += len(decoder.decode(self.token_bytes(token)))
        return offsets


def template_message(message: dict[str, Any]) -> dict[str, Any]:
    """A client's message as templates know it: no empty fields, arguments of calls as objects."""
    plain = {name: value for name, value in message.items() if value is not None}
    if plain.get("role") == "developer":
        plain["role"] = "system"
    calls = []
    for call in plain.get("tool_calls") or ():
        function = dict(call["function"])
        try:
            function["arguments"] = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            raise InvalidRequest(
                f"messages: the arguments of a call of {function['name']!r} are not JSON."
            ) from None
        calls.append({**call, "function": function})
    if calls:
        plain["tool_calls"] = calls
    return plain

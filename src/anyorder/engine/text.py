"""One choice's tokens on their way to text: end tokens, stop strings, limits, incremental text."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from anyorder.core.request import Choice, FinishReason, TraceEntry


class TextStream(Protocol):
    """Incremental detokenisation; see `model.tokenizer`."""

    def push(self, ids: Seq[int]) -> str:
        """Text that became final with these ids."""

    def flush(self) -> str:
        """What is left."""


class Detokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    def stream(self, *, continued: bool = False) -> TextStream:
        """A fresh incremental detokeniser; `continued`: there is text before it."""

    def decode(self, ids: Seq[int], *, continued: bool = False) -> str:
        """Text of these ids."""

    def token_text(self, token: int) -> str:
        """A printable form of one token."""


class GuideProgress(Protocol):
    """What the engine needs of a compiled guide; see `sampling.guide`."""

    def complete(self, generated: Seq[int]) -> bool:
        """May nothing more be said?"""


@dataclass(frozen=True, kw_only=True, eq=False)
class EndRules:
    """When a text is over."""

    end_tokens: frozenset[int]
    stop: tuple[str, ...]
    max_new_tokens: int
    tokenizer: Detokenizer | None
    guide: GuideProgress | None
    continued: bool = True
    """Does the text go on from the prompt's?"""

    def ends(self, tokens: Seq[int]) -> bool:
        """Is a text of exactly these tokens over, the length limit aside?"""
        if tokens[-1] in self.end_tokens:
            return True
        if self.guide is not None and self.guide.complete(tokens):
            return True
        if not self.stop:
            return False
        assert self.tokenizer is not None, "stop strings were accepted without a tokenizer"
        text = self.tokenizer.decode(tokens, continued=self.continued)
        return any(stop in text for stop in self.stop)


class ChoiceBuilder:
    """Collects one choice's final tokens and turns them into text that is never taken back."""

    def __init__(self, rules: EndRules) -> None:
        self._rules = rules
        self._stream = (
            rules.tokenizer.stream(continued=rules.continued)
            if rules.tokenizer is not None
            else None
        )
        self._held = ""
        """Text that might be the beginning of a stop string."""
        self._text: list[str] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.trace: list[TraceEntry] = []
        self.score: float | None = None
        self.finish_reason: FinishReason | None = "length" if rules.max_new_tokens == 0 else None

    def push(
        self,
        token: int,
        logprob: float,
        step: int,
        alternatives: Seq[tuple[int, float]],
        *,
        drafted: bool = False,
    ) -> str:
        """Add one token; returns the text that became final with it."""
        assert self.finish_reason is None, "the choice is finished"
        rules = self._rules
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.trace.append(
            TraceEntry(
                token=token,
                text=rules.tokenizer.token_text(token) if rules.tokenizer is not None else "",
                step=step,
                probability=math.exp(logprob),
                alternatives=tuple((other, math.exp(value)) for other, value in alternatives),
                drafted=drafted,
            )
        )
        if token in rules.end_tokens:
            return self._finish("stop")
        fresh = self._release(self._stream.push([token]) if self._stream is not None else "")
        if self.finish_reason is not None:
            return fresh
        if rules.guide is not None and rules.guide.complete(self.tokens):
            return fresh + self._finish("stop")
        if len(self.tokens) == rules.max_new_tokens:
            return fresh + self._finish("length")
        return fresh

    def build(self) -> Choice:
        """The finished choice."""
        assert self.finish_reason is not None, "the choice is not finished"
        return Choice(
            text="".join(self._text),
            tokens=self.tokens,
            logprobs=self.logprobs,
            finish_reason=self.finish_reason,
            score=self.score,
            trace=tuple(self.trace),
        )

    def _release(self, fresh: str) -> str:
        """Let go of held and fresh text, up to a stop string or what may become one."""
        held = self._held + fresh
        found = [at for at in (held.find(stop) for stop in self._rules.stop) if at >= 0]
        if found:
            self.finish_reason = "stop"
            self._held, visible = "", held[: min(found)]
        else:
            keep = max(
                (
                    length
                    for stop in self._rules.stop
                    for length in range(min(len(stop) - 1, len(held)), 0, -1)
                    if held.endswith(stop[:length])
                ),
                default=0,
            )
            self._held, visible = held[len(held) - keep :], held[: len(held) - keep]
        self._text.append(visible)
        return visible

    def _finish(self, reason: FinishReason) -> str:
        """End the text; what was held back is released unless it completes a stop string."""
        visible = self._release(self._stream.flush() if self._stream is not None else "")
        if self.finish_reason is None:
            self.finish_reason = reason
            visible += self._held
            self._text.append(self._held)
            self._held = ""
        return visible

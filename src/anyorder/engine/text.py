"""One choice's tokens on their way to text: end tokens, stop strings, limits, incremental text."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from anyorder.core.request import Choice, FinishReason, Preview, TraceEntry


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

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a text, with those that the model wants around it."""

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


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Final:
    """A token that was made final."""

    token: int
    logprob: float
    step: int
    """In which pass."""
    alternatives: Seq[tuple[int, float]] = ()
    drafted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Reveal:
    """A token was made final at a place, whatever is open before it."""

    place: int
    final: Final


class ChoiceBuilder:
    """Collects one choice's final tokens and turns them into text that is never taken back.

    Tokens may become final in any order; they turn into text once none before them is missing.
    """

    def __init__(self, rules: EndRules, canvas: Seq[int | None] = ()) -> None:
        self._rules = rules
        self._length = rules.max_new_tokens
        self._waiting = {
            place: Final(token=token, logprob=0.0, step=0)
            for place, token in enumerate(canvas)
            if token is not None
        }
        """Final tokens behind an open place, by place."""
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
        self.history: list[Preview] = []
        self.reveals: list[Reveal] = []
        """In the order in which tokens were made final."""
        self.score: float | None = None
        self.finish_reason: FinishReason | None = "length" if rules.max_new_tokens == 0 else None

    def next_places(self, count: int) -> list[int]:
        """The first open places, in order."""
        places, place = list[int](), len(self.tokens)
        while len(places) < count:
            if place not in self._waiting:
                places.append(place)
            place += 1
        return places

    def reveal(self, place: int, final: Final) -> None:
        """Make one place final. Beyond the end of the text, nothing happens."""
        if self.finish_reason is not None or place >= self._length:
            return
        assert place >= len(self.tokens) and place not in self._waiting, (
            f"place {place} was revealed before"
        )
        self._waiting[place] = final
        self.reveals.append(Reveal(place=place, final=final))

    def end_at(self, num_tokens: int) -> None:
        """Let the text have no more than so many tokens."""
        if self.finish_reason is not None or num_tokens >= self._length:
            return
        assert num_tokens >= len(self.tokens) and max(self._waiting, default=0) <= num_tokens, (
            "tokens are final behind what is to be the text's end"
        )
        self._length = num_tokens

    def release(self) -> tuple[str, list[int]]:
        """Text and tokens that became final: all up to the first open place."""
        text, first = "", len(self.tokens)
        while self.finish_reason is None and len(self.tokens) in self._waiting:
            text += self._push(self._waiting.pop(len(self.tokens)))
        if self.finish_reason is None and len(self.tokens) == self._length:
            full = self._length == self._rules.max_new_tokens
            text += self._finish("length" if full else "stop")
        return text, self.tokens[first:]

    def preview(self, step: int, place: int, token: int | None) -> None:
        """Remember what is not final."""
        tokenizer = self._rules.tokenizer
        shown = tokenizer is not None and token is not None
        text = tokenizer.token_text(token) if shown else ""  # type: ignore[union-attr, arg-type]
        self.history.append(Preview(step=step, place=place, token=token, text=text))

    def _push(self, final: Final) -> str:
        """Add the next token; returns the text that became final with it."""
        rules, token = self._rules, final.token
        others = final.alternatives
        self.tokens.append(token)
        self.logprobs.append(final.logprob)
        self.trace.append(
            TraceEntry(
                token=token,
                text=rules.tokenizer.token_text(token) if rules.tokenizer is not None else "",
                step=final.step,
                probability=math.exp(final.logprob),
                alternatives=tuple((other, math.exp(value)) for other, value in others),
                drafted=final.drafted,
            )
        )
        if token in rules.end_tokens:
            return self._finish("stop")
        fresh = self._release(self._stream.push([token]) if self._stream is not None else "")
        if self.finish_reason is not None:
            return fresh
        if rules.guide is not None and rules.guide.complete(self.tokens):
            return fresh + self._finish("stop")
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
            history=tuple(self.history),
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

"""What the readers hand on: one document, as text whose parts may be learnt or are only given.

Which documents are held out depends on a hash of their keys alone: it is the same for every seed,
and documents of equal key are on the same side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from anyorder.core.errors import UserError
from anyorder.core.plans import TAGS
from anyorder.training.planning import encode_plan, without_plans

if TYPE_CHECKING:
    from anyorder.model.tokenizer import Tokenizer


Part = Literal["train", "validation", "test"]
"""What is learnt from, what is watched meanwhile, what is looked at in the end."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A prompt (given) and a text (to be learnt), or a chat, whose assistant turns are learnt."""

    text: str = ""
    prompt: str = ""
    messages: Sequence[Mapping[str, Any]] = ()
    """Of a chat; text and prompt are empty then."""
    planned: bool = False
    """Its text has the tags of planned diffusion (`training.planning`)."""
    title: str = ""
    """Of the book or file it belongs to, where there is one (`Source.hold_out`)."""

    @property
    def key(self) -> str:
        """What decides between training, validation and test: equal keys stay together.

        With a prompt it is the prompt, so that no validation prompt was ever seen in training; of
        a chat all but the last message, for the same reason.
        """
        given = self.messages[:-1] or self.messages
        return self.prompt or self.plain_text or "\0".join(str(m.get("content")) for m in given)

    @property
    def plain_text(self) -> str:
        """Without plans."""
        return without_plans(self.text) if self.planned else self.text

    @property
    def num_bytes(self) -> int:
        """Of its text in UTF-8."""
        contents = [str(message.get("content", "")) for message in self.messages]
        return sum(len(part.encode()) for part in (self.prompt, self.plain_text, *contents))


@dataclass(frozen=True, kw_only=True)
class Split:
    """Shares of the documents that are kept apart."""

    validation: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or not self.validation + self.test < 1:
            raise UserError(
                "validation and test are shares from 0 whose sum is below 1, got "
                f"{self.validation} and {self.test}."
            )

    def holds(self, part: Part, keys_D: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which documents belong to a part: the lowest keys are validation, the next ones test."""
        validation = np.uint64(int(self.validation * 2**64))
        test = np.uint64(int((self.validation + self.test) * 2**64))
        if part == "validation":
            return keys_D < validation
        return keys_D >= test if part == "train" else (keys_D >= validation) & (keys_D < test)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Documents to token ids with target flags. Texts never yield control tokens."""

    tokenizer: Tokenizer
    before: tuple[int, ...]
    """What the tokenizer puts before every text (BOS); given, not learnt."""
    after: tuple[int, ...]
    """What ends a text; learnt."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Encoder:
        """The tokenizer's own frame, and its end token where the frame has none."""
        plain = tokenizer.encode("a", add_special=False)
        framed = tokenizer.encode("a")
        start = next(i for i in range(len(framed)) if framed[i : i + len(plain)] == plain)
        after = tuple(framed[start + len(plain) :])
        if not after and tokenizer.end_tokens:
            # Declared or named so; of several, the lowest id is the text's end, not a turn's, in
            # every vocabulary whose control tokens are listed from the most general one on.
            after = (min(tokenizer.end_tokens),)
        return cls(tokenizer=tokenizer, before=tuple(framed[:start]), after=after)

    def encode(self, document: Document) -> tuple[list[int], list[bool]]:
        """Token ids and, for each, whether it may be learnt."""
        if document.messages:
            return self._chat(document.messages)
        prompt = [*self.before, *self._spell(document.prompt)]
        text = [*self._text(document), *self.after]
        return prompt + text, [False] * len(prompt) + [True] * len(text)

    def _text(self, document: Document) -> list[int]:
        if not document.planned:
            return self._spell(document.text)
        tags = self.tokenizer.plan_tokens
        if tags is None:
            raise UserError(
                f"planned texts need the control tokens {' '.join(TAGS)}, of which the tokenizer "
                "lacks some; objective planned_diffusion trains one that has them, or with [data] "
                "add_tokens = true adds them."
            )
        return encode_plan(document.text, tags, self._spell)

    def _spell(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False, parse_special=False) if text else []

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """A turn's tokens are what the chat up to it has and the chat that asks for it has not."""
        tokens = self.tokenizer.apply_chat_template(messages, add_generation_prompt=False)
        targets = [False] * len(tokens)
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = 0
            if place:
                start = self._agreement(tokens, messages[:place], add_generation_prompt=True)
            end = self._agreement(tokens, messages[: place + 1], add_generation_prompt=False)
            targets[start:end] = [True] * (end - start)
        return tokens, targets

    def _agreement(
        self,
        tokens: list[int],
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
    ) -> int:
        """How many tokens a shorter chat shares with the whole one: all, but for a last token that
        merged with what follows."""
        shorter = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt
        )
        pairs = enumerate(zip(shorter, tokens, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(shorter), len(tokens)))
        if shared < len(shorter) - 1:
            raise UserError(
                f"the tokenizer's chat template lays out {len(messages)} messages differently when "
                "more follow, so an assistant's turn cannot be told from the rest; use a template "
                "that only ever appends."
            )
        return shared


@dataclass(frozen=True, kw_only=True)
class PairEncoder:
    """Documents with a prompt to two lists of token ids: an encoder's and a decoder's."""

    tokenizer: Tokenizer
    start: int
    """Where a decoder's text begins: the tokenizer's start token, or else its end token."""
    end: tuple[int, ...]
    """What ends a decoder's text; learnt."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, start: int | None = None) -> PairEncoder:
        """With the tokenizer's own tokens, but for a start token that is given."""
        encoder = Encoder.of(tokenizer)
        if not encoder.after:
            raise UserError(
                "an encoder-decoder needs to know where a text ends, but the tokenizer has no end "
                "token; use one that has."
            )
        if start is None:
            start = tokenizer.bos_token
        if start is None:
            start = min(tokenizer.end_tokens, default=encoder.after[0])
        return cls(tokenizer=tokenizer, start=start, end=encoder.after)

    def encode(self, document: Document) -> tuple[list[int], list[int]]:
        """Source, as the engine encodes a prompt; start token, text and end token."""
        source = self.tokenizer.encode(document.prompt, parse_special=False)
        text = self.tokenizer.encode(document.text, add_special=False, parse_special=False)
        return source, [self.start, *text, *self.end]

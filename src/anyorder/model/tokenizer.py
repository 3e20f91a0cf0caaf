"""Text to token ids and back, for whatever tokenizer a model brings.

Control tokens (BOS, end of turn, roles, ...) have texts such as "<|im_start|>", and a text from a
user can contain that text. `encode(..., parse_special=False)` never yields their ids, and
`apply_chat_template` yields them only where the template itself wrote them.

Kinds of tokenizer: see tokenizer_folder and gguf_tokenizer.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.core.errors import InvalidRequest
from anyorder.core.plans import TAGS, PlanTokens
from anyorder.model.detokenizer import Pieces, TextStream
from anyorder.model.template import ChatTemplate, RenderedChat
from anyorder.model.tokenizer_source import TokenizerSource

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A model's tokenizer. Thread-safe."""

    def __init__(self, source: TokenizerSource) -> None:
        self._backend = source.backend
        self._lock = threading.Lock()
        self.vocabulary_size = source.vocabulary_size
        """One more than the highest id."""
        self.control_tokens = frozenset(source.control.values())
        """Ids that stand for no text; ordinary text never encodes to them."""
        self.end_tokens: frozenset[int] = source.end_tokens
        """Ids that end a text: those that the model declares (eos, eot, eom), and control tokens
        that by their name end a text or a turn in any model (<|im_end|>, <end_of_turn>, ...)."""
        self.bos_token: int | None = source.bos
        self.unknown_token: int | None = source.unknown
        self.mask_token: int | None = source.mask_token
        """The token for a masked place; None: the model has none."""
        self.infill_tokens = source.infill_tokens
        """What stands before prefix, suffix and middle where a middle is filled in; None: none."""
        self._control = source.control
        self.chat_template: str | None = source.chat_template
        self._template_variables = source.template_variables
        names = {token: text for text, token in source.control.items()}
        self._pieces = Pieces(source.backend, {**source.added, **names})
        harmless = {source.unknown} - self.end_tokens - {source.bos}
        self._forbidden = self.control_tokens - harmless
        """Control tokens that mean something; an unknown-token may well come from plain text."""

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From the metadata of a GGUF file. Raises `CheckpointError`."""
        from anyorder.model.gguf_tokenizer import read_gguf_tokenizer

        return cls(read_gguf_tokenizer(metadata))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """From a model folder with a tokenizer.json. Raises `CheckpointError`."""
        from anyorder.model.tokenizer_folder import read_folder_tokenizer

        return cls(read_folder_tokenizer(Path(folder)))

    @functools.cached_property
    def plan_tokens(self) -> PlanTokens | None:
        """The tags of planned diffusion; None: the vocabulary lacks some."""
        if not all(tag in self._control for tag in TAGS):
            return None
        topic, topic_end, span, span_end, sync, pad = (self._control[tag] for tag in TAGS)
        pieces = ((token, self._pieces[token]) for token in range(self.vocabulary_size))
        return PlanTokens(
            topic=topic,
            topic_end=topic_end,
            span=span,
            span_end=span_end,
            sync=sync,
            pad=pad,
            digits={
                t: piece.decode() for t, piece in pieces if re.fullmatch(rb" *\d+ *| +", piece)
            },
        )

    # --------------------------------------------------------------------------------- encoding
    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        `add_special`: with the tokens that the model wants around a text (BOS, ...).
        `parse_special`: texts of control tokens become those tokens; otherwise they are spelled
        out like any other text.
        """
        if parse_special:
            return self._run(text, add_special, parse_special=True).ids
        ids = self._spell(text)
        if not add_special:
            return ids
        before, after = self.frame
        return [*before, *ids, *after]

    def _run(self, text: str, add_special: bool, *, parse_special: bool) -> tokenizers.Encoding:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the text contains half of a surrogate pair, which no tokenizer can encode."
            ) from None
        with self._lock:
            self._backend.encode_special_tokens = not parse_special
            return self._backend.encode(text, add_special_tokens=add_special)

    @functools.cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Tokens that the model wants before and after a text."""
        framed = self._run("a", True, parse_special=False)
        inside = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
        return framed.ids[: inside[0]], framed.ids[inside[-1] + 1 :]

    def _spell(self, text: str) -> list[int]:
        """Ids of a text without any control token.

        Some vocabularies hold control tokens as ordinary pieces too, so that a text can merge to
        one all the same; such a text is cut in two inside the offending token.
        """
        encoding = self._run(text, False, parse_special=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._forbidden:
                if end - start < 2:
                    raise InvalidRequest(
                        f"the text contains the control token {text[start:end]!r}, which cannot be "
                        "written as ordinary text; remove it."
                    )
                return self._spell(text[: start + 1]) + self._spell(text[start + 1 :])
        return encoding.ids

    # --------------------------------------------------------------------------------- decoding
    def decode(
        self, ids: Sequence[int], *, skip_special: bool = True, continued: bool = False
    ) -> str:
        """The text of token ids; invalid UTF-8 becomes U+FFFD.

        `skip_special` leaves out control tokens. `continued`: the ids go on from earlier ones, so
        a first space is kept even where the encoding puts one before every text.
        """
        stream = self.stream(skip_special=skip_special, continued=continued)
        return stream.push(ids) + stream.flush()

    def stream(self, *, skip_special: bool = True, continued: bool = False) -> TextStream:
        """Decoding of tokens as they come; the pieces join to what `decode` gives."""
        skip = self.control_tokens if skip_special else frozenset()
        return TextStream(self._pieces, skip=skip, continued=continued)

    def token_text(self, token: int) -> str:
        """A printable form of one token, for traces and pictures.

        Bytes that are no whole character, and control characters, show as escapes: \\xe2, \\n.
        """
        text = self._pieces[token].decode("utf-8", "backslashreplace")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; a control token's name."""
        return self._pieces[token]

    def differs(self, other: Tokenizer) -> int | None:
        """The first id that means something else to another tokenizer; None: they agree."""
        own, others = (
            {token: text for text, token in tokenizer._backend.get_vocab().items()}
            for tokenizer in (self, other)
        )
        ids = range(max(*own, *others) + 1) if own and others else ()
        return next((token for token in ids if own.get(token) != others.get(token)), None)

    def to_json(self) -> str:
        """The tokenizer in the format of Hugging Face's tokenizer.json."""
        with self._lock:
            self._backend.encode_special_tokens = False
            return self._backend.to_str()

    # ------------------------------------------------------------------------------------- chat
    @functools.cached_property
    def _chat(self) -> ChatTemplate:
        if self.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template, so it cannot take chat messages; give the prompt "
                "as text."
            )
        return ChatTemplate(self.chat_template, variables=self._template_variables)

    def apply_chat_template(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of chat messages, as the model's template lays them out.

        Messages cannot forge control tokens: what a content says stays text. Ids equal those of
        the rendered chat encoded in one go whenever no content holds a control token's text.
        Raises `InvalidRequest` for malformed messages and `TemplateError` if the template fails.
        """
        rendered = self._chat.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools
        )
        for text in rendered.other_texts:
            if self._controls(text):
                raise InvalidRequest(
                    f"{text[:60]!r} contains a control token; only a message's content may."
                )
        encoding = self._run(rendered.text, False, parse_special=True)
        if rendered.contents is None:
            return self._check_rewritten(encoding, rendered)
        if self._is_clean(encoding, rendered):
            return encoding.ids
        return self._encode_around_contents(rendered)

    def _controls(self, text: str) -> list[int]:
        ids = self._run(text, False, parse_special=True).ids
        return [token for token in ids if token in self._forbidden]

    def _is_clean(self, encoding: tokenizers.Encoding, rendered: RenderedChat) -> bool:
        """Whether every control token lies outside of the messages' contents."""
        spans = iter([*(rendered.contents or ()), (len(rendered.text) + 1,) * 2])
        start, end = next(spans)
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self._forbidden:
                continue
            # A token's flags may let it swallow white space around it; that is no forgery.
            first, last = _without_spaces(rendered.text, first, last)
            while end <= first:
                start, end = next(spans)
            if last > start:
                return False
        return True

    def _check_rewritten(self, encoding: tokenizers.Encoding, rendered: RenderedChat) -> list[int]:
        """A template that changes contents cannot be aligned with them: allow no surprises."""
        found = [token for token in encoding.ids if token in self._forbidden]
        if found != self._controls(rendered.without_contents):
            raise InvalidRequest(
                "a message contains a control token, and this model's chat template rewrites "
                "contents, so the two cannot be told apart; remove it from the message."
            )
        return encoding.ids

    def _encode_around_contents(self, rendered: RenderedChat) -> list[int]:
        """Control tokens only where the template alone wrote them; the rest is spelled out."""
        ids: list[int] = []
        spelled_to = at = 0
        for start, end in [*(rendered.contents or ()), (len(rendered.text),) * 2]:
            encoding = self._run(rendered.text[at:start], False, parse_special=True)
            for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
                if token in self._forbidden:
                    ids += [*self._spell(rendered.text[spelled_to : at + first]), token]
                    spelled_to = at + last
            at = end
        return ids + self._spell(rendered.text[spelled_to:])


def _without_spaces(text: str, first: int, last: int) -> tuple[int, int]:
    span = text[first:last]
    return first + len(span) - len(span.lstrip()), last - len(span) + len(span.rstrip())

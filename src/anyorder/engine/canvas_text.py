"""A canvas given as text: `The capital is<|mask:3|>, and its river is<|mask|>.`

`<|mask|>` stands for one place to fill in and `<|mask:8|>` for eight. What looks like a marker and
is none is refused, so that no place goes missing silently; whoever wants such text gives token ids.
The space before a word is part of its token: leave none before a marker.
"""

from __future__ import annotations

import re

from anyorder.core.errors import ContextOverflow, InvalidRequest
from anyorder.model.tokenizer import Tokenizer

_GAP = re.compile(r"<\|mask(?::([1-9]\d{0,8}))?\|>")
_STRAY = re.compile(r"<\|mask[^|>]{0,20}\|?>?")


def encode_canvas(text: str, tokenizer: Tokenizer, *, name: str, context: int) -> list[int | None]:
    """Token ids, and None at places to fill in."""
    num_places = sum(int(gap[1] or 1) for gap in _GAP.finditer(text))
    if num_places > context:
        raise ContextOverflow(
            f"the canvas has {num_places} places to fill in, and {name}'s context is {context}; "
            "ask for fewer."
        )
    tokens: list[int | None] = []
    end = 0
    for gap in _GAP.finditer(text):
        tokens += _fixed(text[end : gap.start()], tokenizer)
        tokens += [None] * int(gap[1] or 1)
        end = gap.end()
    return [*tokens, *_fixed(text[end:], tokenizer)]


def _fixed(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a piece, which goes on from what stands before it."""
    stray = _STRAY.search(text)
    if stray is not None:
        raise InvalidRequest(
            f"the canvas holds {stray[0]!r}, which marks no place; write <|mask|> for one and "
            "<|mask:8|> for eight, or give the canvas as token ids."
        )
    if not text:
        return []
    # Some encodings put a space before every text: a piece that has one brings it along, and one
    # that has none is encoded behind a line break, which is dropped again.
    before = _encode("\n", tokenizer)
    behind = _encode(f"\n{text}", tokenizer)
    spellings = [_encode(text, tokenizer), _encode(text.removeprefix(" "), tokenizer)]
    if behind[: len(before)] == before:
        spellings.append(behind[len(before) :])
    same = (ids for ids in spellings if tokenizer.decode(ids, continued=True) == text)
    return next(same, spellings[0])


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, add_special=False)

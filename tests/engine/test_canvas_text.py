"""Canvases given as text: what is fixed comes back as it was written, and no place goes missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.model.small_tokenizers import byte_level, sentencepiece

from anyorder.core.errors import ContextOverflow, InvalidRequest, UserError
from anyorder.engine.canvas_text import encode_canvas
from anyorder.model.tokenizer import Tokenizer

TEXTS = [
    "The capital of France is<|mask:3|>, and of Italy<|mask|>.",
    "<|mask|> naïve<|mask|><|mask:2|> café\n",
    "a <|<|mask|>b",
    "<|mask:12|>",
]


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    made = byte_level() if request.param == "byte_level" else sentencepiece()
    made.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.from_folder(tmp_path)


def encoded(text: str, tokenizer: Tokenizer) -> list[int | None]:
    return encode_canvas(text, tokenizer, name="tiny", context=64)


@pytest.mark.parametrize("text", TEXTS)
def test_fixed_text_is_as_it_was_written(tokenizer: Tokenizer, text: str) -> None:
    canvas, shown, piece = encoded(text, tokenizer), "", list[int]()
    for token in [*canvas, None]:
        if token is None:
            shown += tokenizer.decode(piece, continued=bool(shown)) + "_"
            piece = []
        else:
            piece.append(token)
    expected = text
    for count in (12, 3, 2):
        expected = expected.replace(f"<|mask:{count}|>", "_" * count)
    # What stands first may have been given a space that decoding drops again.
    assert shown.removeprefix(" ") == expected.replace("<|mask|>", "_") + "_"


@pytest.mark.parametrize(
    "text",
    ["a <|mask:0|>", "<|mask:x|>", "<|mask", "<|mask|", "<|mask:-1|>", "<|mask: 3|>", "<|mask:|>",
     "<|mask|> <|masked|>", "<|mask:1234567890|>"],
)  # fmt: skip
def test_what_looks_like_a_marker_and_is_none_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(
        InvalidRequest, match=r"holds '<\|mask.*which marks no place; write <\|mask"
    ):
        encoded(text, tokenizer)


def test_more_places_than_any_text_has_are_refused_before_they_are_made() -> None:
    for text in ("<|mask:999999999|>", "<|mask:60|><|mask:5|>"):
        with pytest.raises(ContextOverflow, match=r"places to fill in, and tiny's context is 64"):
            encode_canvas(text, unused(), name="tiny", context=64)


def unused() -> Tokenizer:
    """Nothing of it may be asked for."""
    return Tokenizer.__new__(Tokenizer)


def test_errors_are_the_user_s() -> None:
    with pytest.raises(UserError) as caught:
        encode_canvas("<|mask" + "x" * 500, unused(), name="tiny", context=64)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200

"""From token ids back to text, all at once or as they come.

Every token stands for fixed bytes (`Pieces`); text is those bytes read as UTF-8, and what is not
valid UTF-8 becomes U+FFFD. That makes streaming exact and O(1) per token: an incremental decoder
holds back the bytes of a half-finished character and nothing else, and the streamed pieces join to
the text that decoding everything at once gives.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from anyorder.core.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CLEAN_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What a WordPiece decoder that cleans up does to every token."""


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte.

    Printable Latin-1 stands for itself; the other 68 bytes are moved, in order, behind U+00FF.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(moved)
    }


class Pieces:
    """The bytes that each token of a vocabulary stands for, by the rules of its decoder."""

    def __init__(self, backend: tokenizers.Tokenizer, added: Mapping[int, str]) -> None:
        """`added` maps the ids of control and other added tokens to their texts."""
        self._backend = backend
        self._cache = {token: text.encode() for token, text in added.items()}
        self._replacement = ""
        """Stands for a space in token texts."""
        self._byte_level = self._byte_tokens = False
        self._join: str | None = None
        """Prefix of tokens that continue a word; all others begin with a space."""
        self._clean_up = False
        self.drops_first_space = False
        """A text's first space belongs to the encoding, not to the text."""
        decoder: Any = backend.decoder
        self._read(json.loads(decoder.__getstate__()) if decoder is not None else None)

    def _read(self, rule: dict[str, Any] | None) -> None:
        match rule:
            case None:
                self._join, self.drops_first_space = "", True
            case {"type": "Sequence", "decoders": parts}:
                for part in parts:
                    self._read(part)
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_tokens = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}:
                self._replacement = "▁"
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                self.drops_first_space = True
            case {"type": "Metaspace", "replacement": replacement}:
                self._replacement = replacement
                self.drops_first_space = rule.get("prepend_scheme", "always") != "never"
            case {"type": "WordPiece", "prefix": prefix}:
                self._join, self.drops_first_space = prefix, True
                self._clean_up = bool(rule.get("cleanup"))
            case _:
                raise CheckpointError(
                    f"the tokenizer's decoder {json.dumps(rule)[:80]} is not supported; supported: "
                    "ByteLevel, Metaspace, WordPiece, and SentencePiece's Replace, ByteFallback, "
                    "Fuse, Strip."
                )

    def __getitem__(self, token: int) -> bytes:
        """The token's bytes; none for an id that the vocabulary does not have."""
        piece = self._cache.get(token)
        if piece is None:
            piece = self._cache[token] = self._piece(self._backend.id_to_token(token) or "")
        return piece

    def _piece(self, text: str) -> bytes:
        if self._byte_level:
            alphabet = _byte_alphabet()
            if all(character in alphabet for character in text):
                return bytes(alphabet[character] for character in text)
            return text.encode()
        if self._byte_tokens and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        if self._replacement:
            text = text.replace(self._replacement, " ")
        if self._join is not None and text:
            joined = self._join and text.startswith(self._join)
            text = text.removeprefix(self._join) if joined else " " + text
        if self._clean_up:
            for ugly, clean in _CLEAN_UP:
                text = text.replace(ugly, clean)
        return text.encode()


class TextStream:
    """Turns tokens into text as they come.

    `skip` holds the ids that leave no text. `continued` says that the tokens go on from earlier
    ones, so a first space is kept even where the encoding puts one before every text.
    """

    def __init__(self, pieces: Pieces, *, skip: frozenset[int], continued: bool) -> None:
        self._pieces = pieces
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = pieces.drops_first_space and not continued

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens make final; "" while a character is incomplete."""
        data = b"".join(self._pieces[token] for token in tokens if token not in self._skip)
        return self._emit(self._decoder.decode(data))

    def flush(self) -> str:
        """What is left: U+FFFD for an incomplete character. The stream starts afresh after it."""
        return self._emit(self._decoder.decode(b"", final=True))

    def _emit(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text

"""Tokenizers from the metadata of GGUF files.

`tokenizer.ggml.model` is "gpt2" (byte-level BPE with merges) or "llama" (SentencePiece BPE: merges
follow from the scores; bytes as fallback; Gemma's is of this kind). Other kinds are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anyorder.core.errors import CheckpointError
from anyorder.model.gguf_pretokenizers import PRE_TOKENIZERS
from anyorder.model.tokenizer_source import TokenizerSource, frame

if TYPE_CHECKING:
    import tokenizers

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NAMED_IN_TEMPLATES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> TokenizerSource:
    """Build the tokenizer that a GGUF file describes. Raises `CheckpointError`."""
    vocabulary = _Vocabulary(metadata)
    model = vocabulary.value("model", str, "gpt2")
    if model == "gpt2":
        backend, add_bos = _byte_level(vocabulary)
    elif model == "llama":
        backend, add_bos = _sentencepiece(vocabulary), True
    else:
        raise CheckpointError(
            f"the GGUF file has a tokenizer of kind {model!r}; known kinds: gpt2, llama."
        )
    control = vocabulary.of_type(_CONTROL, _UNKNOWN)
    added = vocabulary.of_type(_USER_DEFINED)
    _add_tokens(backend, control, added)
    bos = vocabulary.token("bos_token_id")
    ends = [t for t in map(vocabulary.token, _END_KEYS) if t is not None]
    add_bos = vocabulary.value("add_bos_token", bool, add_bos) and bos is not None
    add_eos = vocabulary.value("add_eos_token", bool, False) and bool(ends)
    if add_bos or add_eos:
        before = [bos] if add_bos and bos is not None else []
        frame(backend, before=before, after=ends[:1] if add_eos else [])
    named = {name: vocabulary.token(key) for name, key in _NAMED_IN_TEMPLATES.items()}
    template = metadata.get("tokenizer.chat_template")
    return TokenizerSource(
        backend=backend,
        vocabulary_size=len(vocabulary.tokens),
        control={vocabulary.tokens[token]: token for token in control},
        added={token: vocabulary.tokens[token] for token in added},
        bos=bos,
        eos=tuple(ends),
        unknown=vocabulary.token("unknown_token_id"),
        mask=vocabulary.token("mask_token_id"),
        chat_template=template if isinstance(template, str) else None,
        template_variables={n: vocabulary.tokens[t] for n, t in named.items() if t is not None},
    )


class _Vocabulary:
    """The tokenizer's metadata, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self._array("tokens", str)
        if not self.tokens:
            raise CheckpointError("the GGUF file has no tokenizer (tokenizer.ggml.tokens).")
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise CheckpointError("the GGUF file's vocabulary has the same token twice.")
        self.types: list[int] = self._array("token_type", int) or [_NORMAL] * len(self.tokens)
        self.scores: list[float] = self._array("scores", float)
        for name, values in (("token_type", self.types), ("scores", self.scores)):
            if values and len(values) != len(self.tokens):
                raise CheckpointError(
                    f"the GGUF file has {len(self.tokens)} tokens, but {len(values)} entries in "
                    f"tokenizer.ggml.{name}."
                )

    def _array(self, name: str, kind: type) -> list[Any]:
        values = self._metadata.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(values, list) or (values and not isinstance(values[0], kind)):
            raise CheckpointError(f"tokenizer.ggml.{name} is not a list of {kind.__name__}.")
        return values

    def value(self, name: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            raise CheckpointError(f"tokenizer.ggml.{name} is {value!r}, not a {kind.__name__}.")
        return value

    def token(self, name: str) -> int | None:
        """The id stored under `name`; None where there is none or it is out of range."""
        token = self._metadata.get(f"tokenizer.ggml.{name}")
        return token if type(token) is int and 0 <= token < len(self.tokens) else None

    def of_type(self, *kinds: int) -> list[int]:
        return [token for token, kind in enumerate(self.types) if kind in kinds]

    def merges(self) -> list[tuple[str, ...]]:
        """Pairs of byte-level BPE, best first."""
        return [tuple(line.split(" ", 1)) for line in self._array("merges", str)]


def _byte_level(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether its family starts texts with BOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = vocabulary.value("pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"the GGUF file names the unknown pre-tokenizer {name!r}; known: "
            f"{', '.join(sorted(PRE_TOKENIZERS))}."
        )
    family = PRE_TOKENIZERS[name]
    backend = Tokenizer(
        _bpe(models, vocabulary, vocabulary.merges(), ignore_merges=family.ignore_merges)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), behavior="isolated") for p in family.patterns),
            pre_tokenizers.ByteLevel(
                add_prefix_space=vocabulary.value("add_space_prefix", bool, False), use_regex=False
            ),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend, family.add_bos


def _sentencepiece(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = vocabulary.token("unknown_token_id")
    model = _bpe(
        models,
        vocabulary,
        list(_merges_by_score(vocabulary.tokens, vocabulary.types, vocabulary.scores)),
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )
    backend = Tokenizer(model)
    prefix = vocabulary.value("add_space_prefix", bool, True)
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    return backend


def _bpe(
    models: Any, vocabulary: _Vocabulary, merges: list[tuple[str, ...]], **options: Any
) -> Any:
    try:
        return models.BPE(vocab=vocabulary.ids, merges=merges, **options)
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CheckpointError(f"the GGUF file's merges are unusable: {reason}.") from None


def _merges_by_score(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> Iterator[tuple[str, ...]]:
    """SentencePiece merges whichever two neighbours form the piece of highest score."""
    if not scores:
        raise CheckpointError("the GGUF file has a tokenizer without tokenizer.ggml.scores.")
    usable = [n for n, kind in enumerate(types) if kind not in (_CONTROL, _UNKNOWN, _BYTE, _UNUSED)]
    pieces = {tokens[number] for number in usable}
    for number in sorted(usable, key=lambda number: -scores[number]):
        piece = tokens[number]
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                yield left, right


def _add_tokens(
    backend: tokenizers.Tokenizer, control: Sequence[int], added: Sequence[int]
) -> None:
    from tokenizers import AddedToken

    def named(numbers: Sequence[int], special: bool) -> list[AddedToken]:
        texts = (backend.id_to_token(number) for number in numbers)
        return [AddedToken(t, special=special, normalized=False) for t in texts if t]

    backend.add_special_tokens(named(control, True))
    backend.add_tokens(named(added, False))

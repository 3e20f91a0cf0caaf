"""Tokenizers from model folders: tokenizer.json, or vocab.json with merges.txt.

Also reads what stands around it: tokenizer_config.json, special_tokens_map.json,
generation_config.json, config.json and chat_template.jinja. No code from the folder is run.
SentencePiece's own format (tokenizer.model) is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyorder.core.errors import CheckpointError
from anyorder.model.gguf_pretokenizers import PRE_TOKENIZERS
from anyorder.model.tokenizer_source import TokenizerSource, frame

if TYPE_CHECKING:
    import tokenizers

_MAX_BYTES = 256 << 20
_PIECES = ("source.spm", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_WORDS = {"Qwen2Tokenizer": "qwen2", "DreamTokenizer": "qwen2"}
"""Class of a tokenizer without tokenizer.json -> how it cuts normalised text into words; others do
as GPT-2."""
_ROLES = (
    *("bos_token", "eos_token", "unk_token", "pad_token", "mask_token"),
    *("sep_token", "cls_token"),
)


def read_folder_tokenizer(folder: Path) -> TokenizerSource:
    """Build the tokenizer of a model folder. Raises `CheckpointError`."""
    config = read_json(folder / "tokenizer_config.json")
    special = {**read_json(folder / "special_tokens_map.json"), **config}
    backend = _backend(folder, _WORDS.get(str(config.get("tokenizer_class"))))
    _add_configured_tokens(backend, config)
    roles = {role: text for role in _ROLES if (text := _text(special.get(role)))}
    ids = {
        role: number for role in roles if (number := backend.token_to_id(roles[role])) is not None
    }
    _mark_special(backend, [roles[role] for role in ids])
    _apply_frame(backend, config, ids)
    added = backend.get_added_tokens_decoder()
    model_configs = [
        read_json(folder / "generation_config.json"),
        read_json(folder / "config.json"),
    ]
    return TokenizerSource(
        backend=backend,
        vocabulary_size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        control={token.content: number for number, token in added.items() if token.special},
        added={number: token.content for number, token in added.items() if not token.special},
        bos=ids.get("bos_token", ids.get("cls_token")),
        eos=_end_tokens(ids, model_configs),
        unknown=ids.get("unk_token"),
        mask=ids.get("mask_token"),
        chat_template=read_chat_template(folder),
        template_variables={role: roles[role] for role in ids},
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:100]}.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return data


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_BYTES >> 20} MiB.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8.") from None


def _backend(folder: Path, words: str | None) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.exists():
        text = _read_text(path)
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more specific
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} is unusable: {reason}.") from None
        backend.no_truncation()
        backend.no_padding()
        return backend
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _gpt2_files(folder, words)
    pieces = next((path.name for path in sorted(folder.iterdir()) if path.name in _PIECES), None)
    if pieces is not None:
        raise CheckpointError(
            f"{folder} has a tokenizer in SentencePiece's own format ({pieces}), which is not "
            "read; convert it to tokenizer.json with the transformers package."
        )
    raise CheckpointError(
        f"{folder} has no tokenizer: tokenizer.json (or vocab.json with merges.txt) is needed."
    )


def _gpt2_files(folder: Path, words: str | None) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = _read_text(folder / "merges.txt").split("\n")
    merges: Any = [
        tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
    ]
    try:
        backend = Tokenizer(models.BPE(vocab=read_json(folder / "vocab.json"), merges=merges))
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the vocabulary in {folder} is unusable: {reason}.") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words is not None:
        backend.normalizer = normalizers.NFC()
        cuts = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated")
            for pattern in PRE_TOKENIZERS[words].patterns
        ]
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_])
    backend.decoder = decoders.ByteLevel()
    return backend


def _text(token: Any) -> str | None:
    """A token as text; configs give it plain or as an object with flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _add_configured_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Tokens that only tokenizer_config.json knows, if they get the ids that it gives them."""
    from tokenizers import AddedToken

    wanted = config.get("added_tokens_decoder")
    if not isinstance(wanted, dict):
        return
    known = backend.get_added_tokens_decoder()
    numbers = sorted(int(n) for n in wanted if n.isdigit() and int(n) not in known)
    for number in numbers:
        entry = wanted[str(number)]
        text = _text(entry)
        if text is None:
            raise CheckpointError(f"tokenizer_config.json: added token {number} has no content.")
        flags = {f: bool(entry.get(f)) for f in ("lstrip", "rstrip", "single_word", "normalized")}
        special = bool(entry.get("special"))
        backend.add_tokens([AddedToken(text, special=special, **flags)])
        if backend.token_to_id(text) != number:
            raise CheckpointError(
                f"tokenizer_config.json gives {text!r} the id {number}, but the vocabulary has it "
                f"as {backend.token_to_id(text)}."
            )


def _mark_special(backend: tokenizers.Tokenizer, texts: list[str]) -> None:
    """Tokens with a role (BOS, EOS, ...) are control tokens even where the file does not say."""
    from tokenizers import AddedToken

    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for text in texts:
        if text not in known:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
        elif not known[text].special:
            known[text].special = True
            backend.add_special_tokens([known[text]])


def _apply_frame(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int]
) -> None:
    """Where tokenizer_config.json says add_bos_token or add_eos_token, see that it is so."""
    said = [config.get("add_bos_token"), config.get("add_eos_token")]
    if not any(isinstance(flag, bool) for flag in said):
        return
    probe = backend.encode("a", add_special_tokens=True).ids
    plain = backend.encode("a", add_special_tokens=False).ids
    bos, eos = ids.get("bos_token"), ids.get("eos_token")
    has = (probe[:1] == [bos] != plain[:1], probe[-1:] == [eos] != plain[-1:])
    wants = [
        have if not isinstance(flag, bool) else flag for flag, have in zip(said, has, strict=True)
    ]
    if (wants[0] and bos is None) or (wants[1] and eos is None) or tuple(wants) == has:
        return
    frame(
        backend,
        before=[bos] if wants[0] and bos is not None else [],
        after=[eos] if wants[1] and eos is not None else [],
    )


def _end_tokens(ids: Mapping[str, int], configs: list[dict[str, Any]]) -> tuple[int, ...]:
    found = [ids[role] for role in ("eos_token",) if role in ids]
    for config in configs:
        value = config.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found += [number for number in values if type(number) is int and number not in found]
    return tuple(found)


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a model folder; of several, the default one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return _read_text(path)
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None

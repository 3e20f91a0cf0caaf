"""Trains a byte-level BPE tokenizer (GPT-2's kind: every byte is a token, so any text can be
written) and saves it as a folder that `model.tokenizer` opens; a GGUF file's tokenizer likewise.

Text is split as GPT-2 does. Other kinds (unigram, WordPiece) are not trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anyorder.core.errors import UserError
from anyorder.model.gguf_tokenizer import read_gguf_tokenizer
from anyorder.model.tokenizer import Tokenizer

END_OF_TEXT, MASK = "<|endoftext|>", "<|mask|>"
CONTROL = {"eos_token": END_OF_TEXT, "mask_token": MASK}
"""The control tokens that a tokenizer has unless told otherwise, by role."""

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token")


def unpack_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Save the tokenizer of a GGUF file with this metadata. Raises `CheckpointError`."""
    source = read_gguf_tokenizer(metadata)
    names = {token: text for text, token in source.control.items()}
    roles = {
        "bos_token": source.bos,
        "eos_token": next(iter(source.eos), None),
        "unk_token": source.unknown,
        "mask_token": source.mask,
    }
    config = {role: names[token] for role, token in roles.items() if token in names}
    if source.chat_template is not None:
        config["chat_template"] = source.chat_template
    (folder / "tokenizer.json").write_text(Tokenizer(source).to_json(), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")


def add_control_tokens(folder: Path, names: Iterable[str], *, mask: bool) -> None:
    """Give the tokenizer in a folder the control tokens of these names that it lacks, and with
    `mask` a mask token if it has none. They get the ids behind its last one."""
    from tokenizers import Tokenizer as Backend

    found, config_file = Tokenizer.from_folder(folder), folder / "tokenizer_config.json"
    if mask and found.mask_token is None:
        config = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
        config_file.write_text(json.dumps({**config, "mask_token": MASK}, indent=1), "utf-8")
        names = [MASK, *names]
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(list(names))  # those that are there are overlooked
    backend.save(str(folder / "tokenizer.json"))


def train_tokenizer(
    texts: Iterable[str],
    folder: str | Path,
    *,
    size: int,
    control: Mapping[str, str] = CONTROL,
    further: Iterable[str] = (),
    chat_template: str | None = None,
) -> Tokenizer:
    """A tokenizer of `size` tokens, saved in `folder`.

    `control`: control tokens by role (eos_token, mask_token, bos_token, ...); `further`: those
    without a role (<|im_start|>, ...). They get the first ids, in this order. Texts that are too
    small or too uniform give fewer tokens than asked for, which is an error.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    for role in control:
        if role not in _ROLES:
            raise UserError(f"unknown control token {role!r}; roles: {', '.join(_ROLES)}.")
    names = list(dict.fromkeys([*control.values(), *further]))
    least = 256 + len(names)
    if size < least:
        raise UserError(
            f"a vocabulary of {size} is too small; 256 bytes and {len(names)} control tokens need "
            f"at least {least}."
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != size:
        raise UserError(
            f"these texts give only {backend.get_vocab_size()} tokens, not {size}; give more text "
            "or ask for a smaller vocabulary."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **control}
    if chat_template is not None:
        config["chat_template"] = chat_template
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")
    return Tokenizer.from_folder(folder)

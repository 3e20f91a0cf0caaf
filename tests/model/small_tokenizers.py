"""Small tokenizers, trained on the spot by the `tokenizers` library, as folders and as metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CORPUS = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "She said: don't you're we'll they've it's — naïve café, Straße, ångström.",
    "def f(x):\n    return x + 1\n\n\tif x == 12345: pass\n",
    "a <| b <|c <| d<| e <|\n",
    "数字 12 と 345 です。 Привет, мир! مرحبا 🙂🙃👩‍👩‍👧",
] * 4
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level() -> Tokenizer:
    """GPT-2's kind, with ChatML control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=424,
            special_tokens=CONTROL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def sentencepiece(*, prefix: bool = True) -> Tokenizer:
    """LLaMA's kind: ▁ for spaces, bytes as fallback; a space before every text with `prefix`."""
    control = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
    )
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trained.train_from_iterator(
        (text.encode("ascii", "ignore").decode() for text in CORPUS),
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*control, *fallback], show_progress=False
        ),
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=model["vocab"],
            merges=[tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def metadata(tokenizer: Tokenizer, **more: Any) -> dict[str, Any]:
    """What a GGUF file would say of a tokenizer made by one of the functions above."""
    data = json.loads(tokenizer.to_str())
    by_id = sorted(data["model"]["vocab"].items(), key=lambda item: item[1])
    texts = [text for text, _ in by_id]
    special = {token["id"] for token in data["added_tokens"]}
    is_sentencepiece = data["model"]["byte_fallback"]
    kinds = [3 if token in special else 1 for token in range(len(texts))]
    found: dict[str, Any] = {"tokens": texts, "token_type": kinds}
    merges = [tuple(pair) for pair in data["model"]["merges"]]
    if is_sentencepiece:
        rank = {left + right: number for number, (left, right) in reversed([*enumerate(merges)])}
        found["model"] = "llama"
        found["scores"] = [-float(rank.get(text, 10_000)) for text in texts]
        found["token_type"] = [
            6 if text.startswith("<0x") else kind for text, kind in zip(texts, kinds, strict=True)
        ]
        found["token_type"][0] = 2
        found |= {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    else:
        found |= {"model": "gpt2", "pre": "gpt-2", "merges": [" ".join(pair) for pair in merges]}
        found |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{name}": value for name, value in {**found, **more}.items()}


def save(tokenizer: Tokenizer, folder: Path, **config: Any) -> Path:
    """A model folder with the tokenizer and a tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder

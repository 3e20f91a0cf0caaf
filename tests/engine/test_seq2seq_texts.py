"""Encoder-decoders from folders with their tokenizers: texts in, texts out, as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.model.seq2seq import make
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from anyorder.core.errors import CheckpointError
from anyorder.core.request import Request
from anyorder.engine.engine import Engine

CORPUS = [
    "translate English to German: The house is wonderful.",
    "summarize: a café by the river, 12 tables and 30 chairs; nobody came.",
] * 4
TEXTS = ("translate English to German: The house", "summarize: nobody came, 30 chairs.", "a")


def t5_tokenizer() -> Any:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=80, show_progress=False))
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -float(rank)) for rank, piece in enumerate(sorted(trained.get_vocab()))]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0)


def bart_tokenizer() -> Any:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.BartTokenizer(vocab=model["vocab"], merges=merges)


KINDS = {
    "t5": (t5_tokenizer, {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}),
    "bart": (
        bart_tokenizer,
        {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind][0]()
    model = make(kind, vocab_size=len(tokenizer), **KINDS[kind][1])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine(tmp_path, cache_tokens=2048)
    for text in TEXTS:
        encoded = tokenizer(text, return_tensors="pt")
        tokens = model.generate(
            **encoded, max_new_tokens=12, do_sample=False, use_cache=kind != "t5"
        )[0]
        completion = engine.generate(Request(prompt=text, max_new_tokens=12))
        assert completion.prompt_tokens == encoded["input_ids"][0].tolist()
        theirs = tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert completion.text == theirs
        assert len(theirs) > 2 and not theirs.startswith(" ")
        first = next(event for event in engine.stream(text, max_new_tokens=12) if event.text)
        assert theirs.startswith(first.text)


def test_sentencepiece_without_a_tokenizer_json_is_refused(tmp_path: Path) -> None:
    make("marian").save_pretrained(tmp_path)
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"SentencePiece's own format \(source.spm\)"):
        Engine(tmp_path)


def test_bfloat16_stays_near(tmp_path: Path) -> None:
    tokenizer = t5_tokenizer()
    make("t5", vocab_size=len(tokenizer), **KINDS["t5"][1]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    exact = Engine(tmp_path, cache_tokens=2048)
    rounded = Engine(tmp_path, cache_tokens=2048, dtype=torch.bfloat16)
    request = Request(prompt=TEXTS[0], max_new_tokens=1)
    ours, theirs = (engine.generate(request).logprobs[0] for engine in (rounded, exact))
    assert ours == pytest.approx(theirs, abs=0.1)

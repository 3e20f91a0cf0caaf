"""Rows of logits to sample from, and a small tokenizer for guides."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from anyorder.core.forward import TOKEN
from anyorder.core.request import Request
from anyorder.sampling.sampler import Row

SIZE = 200


@pytest.fixture
def make_row():
    """`make_row(temperature=0.7, history=[...])`: controls of the request, fields of the row."""

    def make(
        history=(),
        num_prompt=0,
        draw=(0,),
        outputs=TOKEN,
        end_tokens=frozenset({2}),
        banned=(),
        forced=frozenset(),
        guide=None,
        given=None,
        **controls,
    ):
        return Row(
            request=Request(prompt="x", **controls),
            outputs=outputs,
            history=list(history),
            num_prompt=num_prompt,
            draw=draw,
            end_tokens=end_tokens,
            banned=banned,
            forced=forced,
            guide=guide,
            given=given,
        )

    return make


@pytest.fixture
def random_logits():
    """`random_logits(rows)`: peaked like a language model's, of a vocabulary of 200."""

    def make(num_rows, seed=0, size=SIZE):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(num_rows, size, generator=generator) * 3
        return logits + 0.0

    return make


@pytest.fixture
def random_histories():
    """`random_histories(rows)`: ids that repeat often."""

    def make(num_rows, length=30, seed=0, size=SIZE):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, size // 20, (num_rows, length), generator=generator)

    return make


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE of 320 ids; 0 is the end token, 1 another special one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ['{"name": "Ann", "age": 12, "tags": ["red", "green"], "ok": true, "none": null}'] * 20
    text += ["the red green blue abc abab 2024-01-31 false été naïve 日本 12 345 6.5e3"] * 20
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<end>", "<other>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer

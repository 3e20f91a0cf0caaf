"""Measures of samples, against sacrebleu, hand counts and the engine's own scores."""

from __future__ import annotations

import math
import random

import pytest
import sacrebleu
from tests.tiny import tiny_engine

from anyorder.core.request import Request
from anyorder.evaluation.quality import (
    Sample,
    compression,
    copied,
    distinct,
    entropy,
    judge,
    quality,
    repetition,
    self_bleu,
    words,
)


def test_words() -> None:
    assert words("It's 3.5 km,\n naïve_x!") == [
        *("It", "'", "s", "3", ".", "5", "km", ",", "naïve_x", "!")
    ]


def test_counts_by_hand() -> None:
    looped = ["a", "b"] * 4  # 8 words: 5 4-grams, 2 of them different
    assert repetition(looped, 4) == pytest.approx(1 - 2 / 5)
    assert repetition(["a", "b", "c", "d"], 4) == 0
    assert entropy(looped) == pytest.approx(math.log(2))
    assert entropy(["a"] * 5) == 0
    assert distinct([looped, ["a", "c"]], 1) == pytest.approx(3 / 10)
    assert distinct([looped, ["a", "c"]], 2) == pytest.approx(3 / 8)  # ab, ba, ac of 7 + 1
    assert distinct([["a"], []], 2) is None


def test_loops_compress_and_noise_does_not() -> None:
    rng = random.Random(0)
    noise = "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-", k=2000))
    assert compression([noise]) < 1.4
    assert compression(["a b " * 500]) > 50
    assert compression(["x" * 100] * 3) > compression(["x" * 100])


def test_copies_by_hand() -> None:
    text = "a b c d e f g h i j"  # three 8-grams
    assert copied([text], ["x b c d e f g h i y"]) == pytest.approx(1 / 3)
    assert copied([text, text], [text[2:], "nothing"]) == pytest.approx(2 / 3)
    twice = ["a b c d e f g h", "a b c d e f g h", "x b c d e f g h"]
    assert copied(twice, [text]) == pytest.approx(2 / 3)
    assert copied(["a b c"], [text]) is None
    assert copied([text], []) == 0


def test_self_bleu_is_sacrebleus() -> None:
    rng = random.Random(0)
    for vocabulary, lengths in (("abcd", (3, 30)), ("abcdefghijklmnop", (1, 12)), ("ab", (4, 4))):
        texts = [rng.choices(vocabulary, k=rng.randint(*lengths)) for _ in range(12)]
        texts[3] = texts[7]  # a text that another one repeats
        expected = [
            sacrebleu.sentence_bleu(
                " ".join(text),
                [" ".join(other) for j, other in enumerate(texts) if j != i],
                tokenize="none",
            ).score
            for i, text in enumerate(texts)
        ]
        assert self_bleu(texts) == pytest.approx(sum(expected) / len(expected))


def test_self_bleu_of_strangers_is_nothing() -> None:
    assert self_bleu([["a", "b"], ["c", "d"]]) == 0
    assert self_bleu([["a", "b", "c", "d"]] * 2) == pytest.approx(100)


def test_quality() -> None:
    found = quality([Sample(text="a b a b a b a b"), Sample(text="a c"), Sample(text="")])
    assert found.num_samples == 3 and found.num_words == pytest.approx(10 / 3)
    assert found.entropy == pytest.approx(math.log(2)) and found.rep_4 == pytest.approx(0.6)
    assert found.distinct_1 == pytest.approx(0.3) and found.distinct_2 == pytest.approx(3 / 8)
    assert found.self_bleu is not None
    nothing = quality([Sample(text="")])
    assert nothing.entropy is nothing.rep_4 is nothing.distinct_1 is nothing.self_bleu is None


class Letters:
    """A tokenizer of single letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]


def test_a_judge_scores_what_follows_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    monkeypatch.setattr(engine, "tokenizer", Letters())
    samples = [
        Sample(text="cde", prompt="ab"),
        Sample(text="abcd"),
        Sample(text="b"),
        Sample(text=""),
    ]
    found = judge(engine, samples)
    whole, alone = engine.score([0, 1, 2, 3, 4]), engine.score([0, 1, 2, 3])
    nats = -sum(whole.logprobs[1:]) - sum(alone.logprobs)
    assert found is not None and found.num_tokens == 6
    assert found.perplexity == pytest.approx(math.exp(nats / 6), rel=1e-6)
    assert judge(engine, samples[2:]) is None


def test_a_loop_pleases_a_judge_and_shows_in_the_repetition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why the numbers are printed side by side."""
    engine = tiny_engine()
    monkeypatch.setattr(engine, "tokenizer", Letters())
    completion = engine.generate([Request(prompt=[5], max_new_tokens=60, ignore_end=True)])[0]
    greedy = "".join(chr(ord("a") + token) for token in completion.tokens)
    rng = random.Random(1)
    mixed = "".join(rng.sample(greedy, len(greedy)))
    judged = [judge(engine, [Sample(text=text, prompt="f")]) for text in (greedy, mixed)]
    assert judged[0] is not None and judged[1] is not None
    assert judged[0].perplexity < judged[1].perplexity

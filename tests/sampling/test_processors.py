"""Every control that edits scores, against its definition and against transformers' processor."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers.generation import logits_process as theirs

from anyorder.sampling import processors as ours
from anyorder.sampling.processors import edit, edits, nothing_left, unpack_bits

SIZE = 200
NUM_PROMPT = 12
LENGTH = 30


def bias(scores, history, controls):
    for token, amount in controls["logit_bias"].items():
        scores[token] += amount


def repetition(scores, history, controls):
    penalty = controls["repetition_penalty"]
    for token in set(history):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty


def presence(scores, history, controls):
    for token in set(history[NUM_PROMPT:]):
        scores[token] -= controls["presence_penalty"]


def frequency(scores, history, controls):
    for token, count in Counter(history[NUM_PROMPT:]).items():
        scores[token] -= controls["frequency_penalty"] * count


def ngrams(scores, history, controls):
    size = controls["no_repeat_ngram"]
    seen = {tuple(history[start : start + size]) for start in range(len(history) - size + 1)}
    for token in range(SIZE):
        if (*history[len(history) - size + 1 :], token) in seen:
            scores[token] = -torch.inf


def bad_words(scores, history, controls):
    for sequence in controls["banned"]:
        for token in range(SIZE):
            if sequence != (2,) and (*history, token)[-len(sequence) :] == sequence:
                scores[token] = -torch.inf


def min_new(scores, history, controls):
    if len(history) - NUM_PROMPT < controls["min_new_tokens"]:
        scores[2] = -torch.inf


def forced(scores, history, controls):
    for token in range(SIZE):
        scores[token] = 0.0 if token in controls["forced"] else -torch.inf


DEFINITIONS = {
    "LogitBias": (bias, [{"logit_bias": {3: 2.5, 199: -1.0}}, {"logit_bias": {0: 1.0}}]),
    "RepetitionPenalty": (
        repetition,
        [{"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}, {"repetition_penalty": 1000.0}],
    ),
    "PresencePenalty": (presence, [{"presence_penalty": 1.5}, {"presence_penalty": -0.25}]),
    "FrequencyPenalty": (frequency, [{"frequency_penalty": 0.5}, {"frequency_penalty": -1.0}]),
    "NoRepeatNgram": (ngrams, [{"no_repeat_ngram": size} for size in (1, 2, 3, 31, 30)]),
    "BadWords": (
        bad_words,
        [
            {"banned": ((7,), (3, 4), (2,))},
            {"banned": ((9, 9, 9), tuple(range(40)))},
            {"banned": tuple((token, 5) for token in range(10))},
        ],
    ),
    "MinNewTokens": (min_new, [{"min_new_tokens": 40}, {"min_new_tokens": 18}]),
    "Forced": (forced, [{"forced": frozenset({7})}, {"forced": frozenset({2, 199})}]),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition_and_untouched_neighbours(name, make_row, random_logits, random_histories):
    """Rows with different settings side by side; those without the control stay bit-identical."""
    definition, settings = DEFINITIONS[name]
    settings = [controls for setting in settings for controls in (setting, {})]
    histories = random_histories(len(settings)).tolist()
    rows = [
        make_row(history=history, num_prompt=NUM_PROMPT, **controls)
        for history, controls in zip(histories, settings, strict=True)
    ]
    logits = random_logits(len(rows))
    processor = getattr(ours, name).for_rows(rows, SIZE)
    result = processor(logits.clone())
    changed = 0
    for line, before, history, controls in zip(result, logits, histories, settings, strict=True):
        expected = before.clone()
        if controls:
            definition(expected, history, controls)
            changed += not torch.equal(expected, before)
            torch.testing.assert_close(line, expected, rtol=1e-6, atol=0)
        else:
            assert torch.equal(line, before)
    assert changed
    assert getattr(ours, name).for_rows([make_row(history=histories[0])], SIZE) is None


def test_a_control_alone_is_used(make_row):
    for _, settings in DEFINITIONS.values():
        for controls in settings:
            assert edits(make_row(history=[1] * 15, num_prompt=NUM_PROMPT, **controls))
    assert not edits(make_row(history=[1, 2], top_k=3, temperature=0.5))


def test_history_is_not_read_without_need(make_row):
    class Forbidden(list):
        def __iter__(self):
            raise AssertionError("history was read")

        __getitem__ = __iter__

    row = make_row(logit_bias={1: 1.0}, min_new_tokens=2, banned=((4,),))
    object.__setattr__(row, "history", Forbidden([1, 2, 3]))
    edit(torch.zeros(1, SIZE), [row])


THEIRS = {
    "repetition": ({"repetition_penalty": 1.2}, theirs.RepetitionPenaltyLogitsProcessor(1.2)),
    "ngram 1": ({"no_repeat_ngram": 1}, theirs.NoRepeatNGramLogitsProcessor(1)),
    "ngram 2": ({"no_repeat_ngram": 2}, theirs.NoRepeatNGramLogitsProcessor(2)),
    "ngram 3": ({"no_repeat_ngram": 3}, theirs.NoRepeatNGramLogitsProcessor(3)),
    "bad words": (
        {"banned": ((7,), (2,), (3, 4), *((token, 5) for token in range(10)))},
        theirs.NoBadWordsLogitsProcessor(
            [[7], [2], [3, 4], *([token, 5] for token in range(10))], eos_token_id=[2]
        ),
    ),
    "bias": (
        {"logit_bias": {5: 2.0, 6: -3.5}},
        theirs.SequenceBiasLogitsProcessor({(5,): 2.0, (6,): -3.5}),
    ),
    "forced first": (
        {"forced": frozenset({7})},
        theirs.ForcedBOSTokenLogitsProcessor(7),
    ),
    "forced last": (
        {"forced": frozenset({2, 5}), "min_new_tokens": 40},
        theirs.ForcedEOSTokenLogitsProcessor(LENGTH + 1, [2, 5]),
    ),
    "min new": (
        {"min_new_tokens": 20},
        theirs.MinNewTokensLengthLogitsProcessor(NUM_PROMPT, 20, [2]),
    ),
    "min new reached": (
        {"min_new_tokens": 18},
        theirs.MinNewTokensLengthLogitsProcessor(NUM_PROMPT, 18, [2]),
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_transformers(name, make_row, random_logits, random_histories):
    controls, processor = THEIRS[name]
    length = 1 if name == "forced first" else LENGTH
    histories, logits = random_histories(20, length), random_logits(20)
    rows = [
        make_row(history=history, num_prompt=NUM_PROMPT, **controls)
        for history in histories.tolist()
    ]
    scores = logits.clone()
    assert edit(scores, rows) == {}
    torch.testing.assert_close(scores, processor(histories, logits), rtol=1e-6, atol=0)


def test_transformers_chained(make_row, random_logits, random_histories):
    """In the order of `generate`; two chains side by side."""
    histories, logits = random_histories(40), random_logits(40)
    chains = [("bias", "repetition", "ngram 2", "bad words", "min new"), ("repetition", "ngram 3")]
    rows, expected = [], logits.clone()
    for index, history in enumerate(histories.tolist()):
        chain = chains[index % 2]
        controls = {key: value for name in chain for key, value in THEIRS[name][0].items()}
        rows.append(make_row(history=history, num_prompt=NUM_PROMPT, **controls))
        for name in chain:
            line = THEIRS[name][1](histories[index : index + 1], expected[index : index + 1])
            expected[index : index + 1] = line
    scores = logits.clone()
    edit(scores, rows)
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0)


def test_penalties_follow_one_another(make_row, random_logits):
    """Bias, then the repetition penalty, then those for what was generated."""
    history, logits = [3] * NUM_PROMPT + [4, 5, 5], random_logits(1)
    controls = {
        "logit_bias": {4: 9.0, 5: -20.0},
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
    }
    expected = logits[0].clone()
    for definition in (bias, repetition, presence, frequency):
        definition(expected, history, controls)
    scores = logits.clone()
    edit(scores, [make_row(history=history, num_prompt=NUM_PROMPT, **controls)])
    torch.testing.assert_close(scores[0], expected, rtol=1e-6, atol=0)


def test_infinite_bias(make_row):
    """Minus infinity bans; plus infinity forces, and stays finite for later stages."""
    scores = torch.zeros(1, SIZE)
    edit(scores, [make_row(logit_bias={3: -torch.inf, 4: torch.inf})])
    assert scores[0, 3] == -torch.inf
    assert scores[0, 4].isfinite() and scores.argmax() == 4


def test_nothing_left_names_the_controls(make_row):
    row = make_row(history=[1], banned=((1,),), min_new_tokens=3, temperature=1.0)
    assert "bad_words and min_new_tokens together" in nothing_left(row)


def test_unpack_bits():
    words = torch.tensor([[1 | 1 << 31, 0], [-1, 5]], dtype=torch.int64).to(torch.int32)
    bits = unpack_bits(words, 40)
    assert bits.shape == (2, 40)
    assert bits[0].nonzero()[:, 0].tolist() == [0, 31]
    assert bits[1].nonzero()[:, 0].tolist() == [*range(32), 32, 34]

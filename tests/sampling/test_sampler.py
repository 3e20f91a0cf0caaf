"""Answers for rows: both distributions, both places of computing, rows apart from each other."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers.generation import logits_process as theirs

from anyorder.core.errors import GuideError
from anyorder.core.forward import NOTHING, Outputs
from anyorder.sampling import sampler
from anyorder.sampling.draws import uniform
from anyorder.sampling.guidance import classifier_free
from anyorder.sampling.sampler import sample
from anyorder.sampling.weights import weigh

EVERYTHING = Outputs(entropy=True, margin=True, top=5, best=7)
MIXED = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 5, "seed": 3},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 1.5, "no_repeat_ngram": 2, "min_p": 0.01},
    {"temperature": 0.7, "logit_bias": {3: 4.0}, "typical_p": 0.8},
    {"min_new_tokens": 100, "frequency_penalty": 0.3, "banned": ((1, 2), (3,))},
]


@pytest.fixture(params=["host", "device"])
def place(request, monkeypatch):
    """Compute as for logits in main memory, and as for logits on an accelerator."""
    if request.param == "device":
        monkeypatch.setattr(sampler, "on_host", lambda logits: False)
    return request.param


def fields(result):
    return dataclasses.asdict(result)


def mixed_rows(make_row, histories):
    return [
        make_row(
            history=history, num_prompt=10, draw=(0, index), outputs=EVERYTHING, given=index, **mix
        )
        for index, (history, mix) in enumerate(zip(histories, MIXED * 3, strict=False))
    ]


def test_greedy_is_the_argmax(place, make_row, random_logits):
    logits = random_logits(6)
    results = sample(logits, [make_row(top_k=3, top_p=0.1)] * 6)
    expected = logits.log_softmax(-1).max(-1)
    assert [result.token for result in results] == expected.indices.tolist()
    assert [result.logprob for result in results] == pytest.approx(expected.values.tolist())


def test_what_is_not_asked_for_stays_empty(place, make_row, random_logits):
    result = sample(random_logits(1), [make_row(outputs=NOTHING)])[0]
    assert fields(result) == fields(sampler.RowResult())
    result = sample(random_logits(1), [make_row(outputs=Outputs(logprob=False))])[0]
    assert result.token is not None and result.logprob is None
    result = sample(random_logits(1), [make_row(outputs=Outputs(token=False))])[0]
    assert result.token is None and result.logprob is None


def test_the_models_distribution(place, make_row, random_logits, random_histories):
    """Described as it is, whatever controls shape the draw."""
    rows = mixed_rows(make_row, random_histories(16).tolist())
    logits = random_logits(16)
    logits[:, 190:] = -math.inf
    logprobs = logits.double().log_softmax(-1)
    results = sample(logits, rows)
    for line, row, result in zip(logprobs, rows, results, strict=True):
        chances = line.exp()
        assert result.error is None
        assert result.logprob == pytest.approx(float(line[result.token]), rel=1e-5, abs=3e-6)
        assert result.given == pytest.approx(float(line[row.given]), rel=1e-5, abs=3e-6)
        entropy = -float((chances * line).nansum())
        assert result.entropy == pytest.approx(entropy, rel=1e-5)
        first, second = chances.topk(2).values.tolist()
        assert result.margin == pytest.approx(first - second, rel=1e-4)
        values, ids = line.topk(5)
        assert [token for token, _ in result.top] == ids.tolist()
        assert [value for _, value in result.top] == pytest.approx(
            values.tolist(), rel=1e-5, abs=3e-6
        )


def test_impossible_alternatives_are_left_out(place, make_row):
    logits = torch.full((1, 20), -math.inf)
    logits[0, 4:6] = torch.tensor([1.0, 1.0])
    result = sample(logits, [make_row(outputs=Outputs(top=5, best=30, margin=True))])[0]
    half = pytest.approx(math.log(0.5))
    assert result.top == [(4, half), (5, half)]
    assert result.best == [(4, half), (5, half)]
    assert result.margin == pytest.approx(0.0)


def test_a_vocabulary_of_one(place, make_row):
    outputs = Outputs(top=5, best=5, margin=True, entropy=True)
    result = sample(torch.ones(1, 1), [make_row(outputs=outputs, temperature=1.0)])[0]
    assert (result.token, result.logprob, result.margin, result.entropy) == (0, 0.0, 1.0, 0.0)
    assert result.top == result.best == [(0, 0.0)]


def test_scores_for_a_search(place, make_row, random_logits, random_histories):
    """As in transformers' beam search: processors act on log-probabilities, temperature does
    not."""
    histories, logits = random_histories(4), random_logits(4)
    processors = [
        theirs.RepetitionPenaltyLogitsProcessor(1.4),
        theirs.NoRepeatNGramLogitsProcessor(2),
        theirs.MinNewTokensLengthLogitsProcessor(10, 30, [2]),
    ]
    expected = logits.log_softmax(-1)
    for processor in processors:
        expected = processor(histories, expected)
    outputs = Outputs(token=False, logprob=False, best=9)
    controls = {"repetition_penalty": 1.4, "no_repeat_ngram": 2, "min_new_tokens": 30}
    rows = [
        make_row(history=history, num_prompt=10, outputs=outputs, temperature=0.5, **controls)
        for history in histories.tolist()
    ]
    for line, result in zip(expected, sample(logits, rows), strict=True):
        values, ids = line.topk(9)
        assert [token for token, _ in result.best] == ids.tolist()
        assert [score for _, score in result.best] == pytest.approx(values.tolist(), rel=1e-5)


def test_processed_scores_replace_the_start(place, make_row, random_logits):
    """Guided by a second prompt: draws and searches follow it, descriptions stay the model's."""
    logits, unconditional = random_logits(2), random_logits(2, seed=1)
    processed = classifier_free(logits, unconditional, 4.0)
    rows = [make_row(outputs=Outputs(best=3)), make_row(temperature=1.0, top_k=1)]
    greedy, drawn = sample(logits, rows, processed)
    tokens = processed.argmax(-1).tolist()
    assert [greedy.token, drawn.token] == tokens
    assert tokens != logits.argmax(-1).tolist()
    logprobs = logits.log_softmax(-1)
    assert greedy.logprob == pytest.approx(float(logprobs[0, tokens[0]]))
    assert greedy.best[0] == (tokens[0], pytest.approx(float(processed[0].max())))


def test_draws_follow_the_processed_distribution(place, make_row, random_logits):
    """The id at which the running sum of weights passes the request's own number."""
    logits = random_logits(1).expand(300, -1).contiguous()
    rows = [
        make_row(temperature=1.3, top_p=0.95, seed=seed, draw=(1, 2, 3), banned=((7,),))
        for seed in range(300)
    ]
    scores = logits[0].clone()
    scores[7] = -math.inf
    ids, weights = weigh(scores.numpy(), rows[0].request)
    ends = weights.cumsum() / weights.sum()
    expected = [int(ids[(ends <= uniform(seed, 1, 2, 3)).sum()]) for seed in range(300)]
    assert [result.token for result in sample(logits, rows)] == expected
    assert len(set(expected)) > 10


def test_the_processed_probability_of_a_given_id(place, make_row, random_logits):
    logits = random_logits(1)
    wanted = Outputs(chance=True)

    def chance(given, **controls):
        row = make_row(outputs=wanted, given=given, banned=((7,),), **controls)
        (result,) = sample(logits, [row])
        assert result.token is not None and result.given is not None
        return result.chance

    scores = logits[0].double().clone()
    scores[7] = -math.inf
    expected = (scores / 0.7).softmax(-1)
    values, ids = (scores / 0.7).topk(5)
    for given in (*ids.tolist(), 7, 11):
        assert chance(given, temperature=0.7) == pytest.approx(float(expected[given]), abs=1e-7)
        among = dict(zip(ids.tolist(), values.softmax(-1).tolist(), strict=True)).get(given, 0.0)
        assert chance(given, temperature=0.7, top_k=5) == pytest.approx(among, abs=1e-7)
        assert chance(given, temperature=0.0) == float(given == ids[0])


@pytest.mark.parametrize("num_rows", [24, 300])
def test_a_row_does_not_depend_on_its_neighbours(
    num_rows, place, make_row, random_logits, random_histories
):
    """Alone, in any order, and across the slices into which many rows are cut."""
    histories = random_histories(num_rows).tolist()
    rows = (mixed_rows(make_row, histories[:24]) * 13)[:num_rows]
    logits, processed = random_logits(num_rows), random_logits(num_rows, seed=9)
    for source in (None, processed):
        before = logits.clone()
        together = sample(logits, rows, source)
        order = torch.randperm(num_rows).tolist()
        moved = None if source is None else source[order]
        shuffled = sample(logits[order], [rows[index] for index in order], moved)
        for index, result in zip(order, shuffled, strict=True):
            assert fields(result) == fields(together[index])
        for index in range(0, num_rows, num_rows // 10):
            some = slice(index, index + 1)
            alone = sample(logits[some], [rows[index]], None if source is None else source[some])
            assert fields(alone[0]) == fields(together[index])
        assert torch.equal(logits, before)


def test_both_places_agree(monkeypatch, make_row, random_logits, random_histories):
    rows = mixed_rows(make_row, random_histories(24).tolist())
    logits = random_logits(24)
    on_host = sample(logits, rows)
    monkeypatch.setattr(sampler, "on_host", lambda logits: False)
    for one, other in zip(on_host, sample(logits, rows), strict=True):
        assert one.token == other.token
        for name in ("logprob", "entropy", "margin", "given"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4), name
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        assert one.best == other.best


def test_a_row_without_a_token_left_fails_alone(place, make_row, random_logits):
    everything = tuple((token,) for token in range(200))
    rows = [
        make_row(outputs=EVERYTHING),
        make_row(banned=everything, end_tokens=frozenset()),
        make_row(banned=everything, end_tokens=frozenset(), temperature=0.7, top_p=0.5, min_p=0.1),
        make_row(banned=everything, min_new_tokens=1, temperature=1.0, top_k=4, typical_p=0.5),
        make_row(banned=everything, min_new_tokens=1, outputs=Outputs(token=False, best=3)),
        make_row(temperature=1.0),
    ]
    logits = random_logits(6)
    results = sample(logits, rows)
    message = "no token is left after 0 new tokens: bad_words"
    assert [result.error is None for result in results] == [True] + [False] * 4 + [True]
    assert all(result.error.startswith(message) for result in results[1:5])
    assert "bad_words and min_new_tokens together" in results[3].error
    assert fields(results[0]) == fields(sample(logits[:1], rows[:1])[0])
    assert results[5].token == sample(logits[5:], rows[5:])[0].token


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "controls",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.5, "repetition_penalty": 2.0},
        {"outputs": Outputs(token=False), "given": 3},
        {"outputs": Outputs(token=False, best=3)},
    ],
)
def test_broken_logits_fail_alone(place, value, controls, make_row, random_logits):
    logits = random_logits(3)
    logits[1, 17] = value
    results = sample(logits, [make_row(), make_row(**controls), make_row()])
    assert "NaN" in results[1].error
    assert results[0].error is results[2].error is None
    assert results[2].token == int(logits[2].argmax())


class Guide:
    """Allows one id, or gives up."""

    def __init__(self, token=None):
        self.token = token

    def fill_mask(self, generated, words):
        if self.token is None:
            raise GuideError(f"gave up after {list(generated)}")
        words[self.token // 32] = 1 << self.token % 32


def test_guides(place, make_row, random_logits):
    rows = [
        make_row(guide=Guide(40)),
        make_row(logit_bias={3: 0.5}),
        make_row(guide=Guide(7), temperature=1.0, outputs=Outputs(best=3)),
        make_row(guide=Guide(), history=[5, 6], num_prompt=1, temperature=1.0),
    ]
    logits = random_logits(4)
    results = sample(logits, rows)
    assert [result.token for result in results[:3]] == [40, int(logits[1].argmax()), 7]
    assert [token for token, _ in results[2].best] == [7]
    assert results[3].error == "gave up after [6]"
    results = sample(logits[:1], [make_row(guide=Guide(7), logit_bias={7: -math.inf})])
    assert "logit_bias and guide together" in results[0].error
    assert sample(logits[:1], rows[:1])[0].token == 40
    search = make_row(guide=Guide(), outputs=Outputs(token=False, best=2))
    assert sample(logits[:1], [search])[0].error == "gave up after []"


def test_no_rows(make_row):
    assert sample(torch.zeros(0, 5), []) == []

"""Sampling controls on a canvas, each beside its definition written out for one place at a time.

The definition (docs/controls.md): what stands on the canvas when a pass runs, before and behind the
place, counts as generated so far; draws are from the pass's own distribution after that.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from anyorder.core.batch import KeyValuePool, PackedBatch
from anyorder.core.method import Abilities
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.tokenizer_source import TokenizerSource

LETTERS = "abcdefg"
END, MASK, VOCABULARY, PLACES = 7, 8, 9, 8
PROMPT = [2, 5]


class Table:
    """Implements `core.batch.Network`: scores are a sum over what stands around each place."""

    cache_shapes = ((1, 1),)
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self._own = torch.randn(PLACES, VOCABULARY, generator=generator) * 1.5
        self._pull = torch.randn(PLACES, VOCABULARY, VOCABULARY, generator=generator) * 0.8

    def scores(self, canvas: list[int]) -> torch.Tensor:
        """Logits [places, vocabulary], the mask token's among them."""
        found = self._own[: len(canvas)].clone()
        for place in range(len(canvas)):
            for at, token in enumerate(canvas):
                if at != place and token != MASK:
                    found[place] += self._pull[abs(at - place), token]
        return found

    def hidden(self, batch: PackedBatch, pool: KeyValuePool | None) -> torch.Tensor:
        """Rows of scores."""
        rows = torch.zeros(len(batch.tokens_N), VOCABULARY)
        for group in batch.groups:
            tokens = batch.tokens_N[group.rows].view(group.num_requests, group.num_queries)
            for order, line in enumerate(tokens.tolist()):
                first = group.first_row + order * group.num_queries + len(PROMPT)
                canvas = line[len(PROMPT) :]
                rows[first : first + len(canvas)] = self.scores(canvas)
        return rows

    def logits(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """What `hidden` made."""
        return hidden_MW.clone()

    def heads(self, hidden_MW: torch.Tensor) -> torch.Tensor:
        """See Network."""
        raise AssertionError("no heads")


@pytest.fixture(scope="module")
def engine() -> Engine:
    words = {letter: token for token, letter in enumerate(LETTERS)} | {"h": END, "i": MASK}
    backend = Backend(models.BPE(words, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(
        TokenizerSource(backend=backend, vocabulary_size=VOCABULARY, control={}, added={})
    )
    abilities = Abilities(
        name="table",
        vocabulary_size=VOCABULARY,
        context_length=64,
        mask_token=MASK,
        end_tokens=frozenset({END}),
        attention=frozenset({"bidirectional"}),
    )
    model = LoadedModel(network=Table(), abilities=abilities, tokenizer=tokenizer)  # type: ignore[arg-type]
    return Engine(model, cache_tokens=16384)


def write(engine: Engine, **fields: Any) -> Completion:
    known = {
        "prompt": PROMPT,
        "method": "masked_diffusion",
        "max_new_tokens": PLACES,
        "ignore_end": True,
        "logit_bias": {END: -math.inf},
    }
    completion = engine.generate(Request(**{**known, **fields}))
    assert isinstance(completion, Completion)
    return completion


def spell(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def grams(line: list[int | None], size: int) -> list[tuple[int | None, ...]]:
    windows = [tuple(line[start : start + size]) for start in range(len(line) - size + 1)]
    return [window for window in windows if None not in window]


def breaks(line: list[int | None], request: dict[str, Any]) -> bool:
    """Does prompt and text, as far as it stands, hold what is banned?"""
    for word in request.get("bad_words", ()):
        ids = tuple(spell(word))
        if ids in grams(line[len(PROMPT) :], len(ids)):
            return True
        if ids in grams(line, len(ids)):
            return True
    size = request.get("no_repeat_ngram", 0)
    return bool(size) and max(Counter(grams(line, size)).values(), default=0) > 1


def processed(
    scores: torch.Tensor, canvas: list[int | None], place: int, request: dict[str, Any]
) -> torch.Tensor:
    """The scores at one open place, by the definition in words."""
    found = scores.double().clone()
    found[MASK] = found[END] = -math.inf
    for token, bias in request.get("logit_bias", {}).items():
        found[token] += bias
    standing = [token for token in canvas if token is not None]
    penalty = request.get("repetition_penalty", 1.0)
    for token in {*PROMPT, *standing}:
        found[token] = found[token] * penalty if found[token] < 0 else found[token] / penalty
    for token, count in Counter(standing).items():
        found[token] -= request.get("presence_penalty", 0.0)
        found[token] -= request.get("frequency_penalty", 0.0) * count
    for token in range(len(LETTERS)):
        tried = list(canvas)
        tried[place] = token
        if breaks([*PROMPT, *tried], request) and not breaks([*PROMPT, *canvas], request):
            found[token] = -math.inf
    return found


CONTROLS: list[dict[str, Any]] = [
    {},
    {"logit_bias": {0: 2.0, 3: -1.5, 6: -math.inf}},
    {"repetition_penalty": 1.8},
    {"presence_penalty": 2.0},
    {"frequency_penalty": 0.9},
    {"frequency_penalty": -0.7, "presence_penalty": 0.3, "repetition_penalty": 0.8},
    {"bad_words": ["a", "bd"]},
    {"bad_words": ["da", "ad", "fc", "aa", "fgf", "gd", "ee"]},
    {"no_repeat_ngram": 2},
    {"no_repeat_ngram": 3, "frequency_penalty": -2.0},
    {"no_repeat_ngram": 2, "bad_words": ["ab", "ga"], "presence_penalty": -1.0},
]
POLICIES: list[dict[str, Any]] = [
    {"commit": "random"},
    {"commit": "confidence", "steps": 3},
    {"commit": "sequential", "steps": 4},
]


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_each_token_is_the_best_by_the_definition(engine: Engine, control: dict[str, Any]) -> None:
    bias = {END: -math.inf, **control.get("logit_bias", {})}
    changed = 0
    for options, seed in itertools.product(POLICIES, range(3)):
        fields = {**control, "logit_bias": bias}
        completion = write(engine, options=options, seed=seed, logprobs=3, **fields)
        trace, network = completion.trace, Table()
        assert len(trace) == PLACES
        assert not breaks([*PROMPT, *completion.tokens], control)
        for place, entry in enumerate(trace):
            canvas = [e.token if e.step < entry.step else None for e in trace]
            scores = network.scores([MASK if token is None else token for token in canvas])[place]
            expected = processed(scores, canvas, place, control)
            assert entry.token == int(expected.argmax()), (canvas, place)
            # Log-probabilities are the network's own, in the pass that made the token final.
            scores[MASK] = -math.inf
            logprobs = scores.double().log_softmax(-1)
            assert completion.logprobs[place] == pytest.approx(
                float(logprobs[entry.token]), abs=1e-5
            )
            others = {token: math.log(chance) for token, chance in entry.alternatives}
            best = logprobs.topk(3)
            assert set(others) == set(best.indices.tolist())
            for token, value in others.items():
                assert value == pytest.approx(float(logprobs[token]), abs=1e-5)
        changed += completion.tokens != write(engine, options=options, seed=seed).tokens
    assert changed or not control


def test_end_tokens_wait_for_their_place(engine: Engine) -> None:
    for options in POLICIES:
        for least in (0, 3, PLACES):
            completion = write(
                engine,
                options=options,
                ignore_end=False,
                logit_bias={END: 30.0},
                min_new_tokens=least,
            )
            assert len(completion.tokens) == max(least + 1, 1) or least == PLACES
            assert END not in completion.tokens[:least]
            assert completion.finish_reason == ("length" if least == PLACES else "stop")


def test_stop_strings(engine: Engine) -> None:
    """Of several tokens, they cut the text that would have been. A token that holds one ends the
    text wherever it stands: nothing behind it is filled, and so nothing before it sees that."""
    for options, seed in itertools.product(POLICIES, range(4)):
        whole = write(engine, options=options, seed=seed, temperature=1.0).text
        for stop in (whole[4:6], whole[:2], whole[3]):
            found = write(engine, options=options, seed=seed, temperature=1.0, stop=[stop])
            assert stop not in found.text
            if len(stop) > 1 or options["commit"] == "sequential":
                assert found.text == whole[: whole.index(stop)] and found.finish_reason == "stop"


def test_seeds(engine: Engine) -> None:
    for options in POLICIES:
        found = [
            write(engine, options=options, seed=seed, temperature=1.0).tokens
            for seed in (1, 2, 1, 2)
        ]
        assert found[:2] == found[2:] and found[0] != found[1]


# ----------------------------------------------------------------------------------- distributions
SHAPES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    ({"temperature": 1.0, "top_k": 3, "presence_penalty": 1.5}, [TopKLogitsWarper(3)]),
    (
        {"temperature": 1.5, "top_p": 0.7, "frequency_penalty": 0.8},
        [TemperatureLogitsWarper(1.5), TopPLogitsWarper(0.7)],
    ),
    (
        {"temperature": 1.2, "min_p": 0.15, "repetition_penalty": 1.6},
        [TemperatureLogitsWarper(1.2), MinPLogitsWarper(0.15)],
    ),
    ({"temperature": 1.0, "typical_p": 0.6, "bad_words": ["ab"]}, [TypicalLogitsWarper(0.6)]),
]


@pytest.mark.parametrize(
    ("control", "warpers"), SHAPES, ids=["-".join(control) for control, _ in SHAPES]
)
def test_draws_follow_the_shaped_distribution(
    engine: Engine, control: dict[str, Any], warpers: list[Any]
) -> None:
    """Two open places beside fixed ones, in a random order: every pair as often as it should be."""
    canvas: list[int | None] = [0, None, None, 4]
    num_draws = 600
    network = Table()

    def shaped(known: list[int | None], place: int) -> torch.Tensor:
        scores = network.scores([MASK if token is None else token for token in known])[place]
        line = processed(scores, known, place, control)[None]
        for warper in warpers:
            line = warper(None, line)
        return line[0].softmax(-1)

    expected = Counter[tuple[int, int]]()
    for first, second in ((1, 2), (2, 1)):
        for token, chance in enumerate(shaped(canvas, first).tolist()):
            if not chance:
                continue
            known = list(canvas)
            known[first] = token
            for other, rest in enumerate(shaped(known, second).tolist()):
                pair = (token, other) if first == 1 else (other, token)
                expected[pair] += chance * rest / 2
    assert sum(expected.values()) == pytest.approx(1)
    completion = write(
        engine,
        options={"commit": "random"},
        canvas=canvas,
        max_new_tokens=None,
        n=num_draws,
        **control,
    )
    counts = Counter((c.tokens[1], c.tokens[2]) for c in completion.choices)
    assert all(expected[pair] > 0 for pair in counts)
    statistic, cells, rare, rare_expected = 0.0, 0, 0, 0.0
    for pair, chance in expected.items():
        mean = chance * num_draws
        if mean < 4:
            rare, rare_expected = rare + counts[pair], rare_expected + mean
        else:
            statistic, cells = statistic + (counts[pair] - mean) ** 2 / mean, cells + 1
    if rare_expected > 4:
        statistic, cells = statistic + (rare - rare_expected) ** 2 / rare_expected, cells + 1
    assert (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1)) < 4

"""Mask-predict against a plain loop over dense passes, and what requests may ask of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import pytest
import torch
from tests.methods.encoder_decoders import (
    MASK,
    START,
    encode,
    hidden,
    mask_filler,
    source,
)
from tests.tiny import (
    END,
    assert_no_page_is_lost,
    tiny_encoder_decoder_config,
    tiny_engine,
)

from anyorder.core.method import TextRules
from anyorder.core.request import Choice, Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel

NUM_LENGTHS = 24


@functools.cache
def translator(*, ends: bool = False, banned: tuple[int, int] | None = None) -> LoadedModel:
    """Fills masks from a source, and predicts how many."""
    rules = TextRules(start_tokens=(START,), banned=(banned,) if banned else ())
    config = tiny_encoder_decoder_config(
        text_rules=rules, length_classes=NUM_LENGTHS, tied_embeddings=False
    )
    return mask_filler(config, ends=ends)


def generate(tokens: list[int], engine: Engine | None = None, **fields: Any) -> Completion:
    engine = engine or tiny_engine(model=translator())
    request = Request(
        **{"prompt": tokens, "method": "mask_predict", "max_new_tokens": 30, **fields}
    )
    completion = engine.generate(request)
    assert_no_page_is_lost(engine)
    return completion


def log_probabilities(states: torch.Tensor, text: torch.Tensor, *, first: int = 1) -> torch.Tensor:
    """Of every token of a text [N] behind the start token, [N, vocabulary]."""
    network: Any = translator().network
    logits = network.logits(hidden(network, states, [START, *text.tolist()]))[first:]
    logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)  # type: ignore[no-any-return]


def naive(tokens: list[int], iterations: int, num_lengths: int) -> tuple[list[int], list[float]]:
    """The paper's loop, a text of one length at a time."""
    states = encode(translator().network, tokens)
    network: Any = translator().network
    lengths = network.length_logits(states[:1])[0]
    lengths[0] = -torch.inf
    found = []
    for length in lengths.topk(num_lengths).indices.tolist():
        text = torch.full((length,), MASK)
        scores = torch.zeros(length, dtype=torch.float64)
        for t in range(iterations):
            if t:
                count = max(1, int(length * (iterations - t) / iterations + 1e-9))
                text[scores.topk(count, largest=False).indices] = MASK
            masked = text == MASK
            values, ids = log_probabilities(states, text).max(dim=-1)
            text = torch.where(masked, ids, text)
            scores = torch.where(masked, values.double(), scores)
        found.append((float(scores.mean()), text.tolist(), scores.tolist()))
    _, best, best_scores = max(found)
    return best, best_scores


@pytest.mark.parametrize("iterations", [1, 2, 4, 10])
@pytest.mark.parametrize("num_lengths", [1, 5])
def test_it_is_the_papers_loop(iterations: int, num_lengths: int) -> None:
    for seed in range(4):
        tokens = source(seed)
        options = {"iterations": iterations, "lengths": num_lengths}
        completion = generate(tokens, options=options)
        expected, scores = naive(tokens, iterations, num_lengths)
        assert completion.tokens == expected
        assert completion.logprobs == pytest.approx(scores, abs=1e-5)
        assert completion.report.passes_by_role == {"encoder": 1, "target": iterations}
        assert completion.finish_reason == "stop"


def test_more_iterations_and_lengths_change_something() -> None:
    texts = {
        tuple(generate(source(2), options={"iterations": i, "lengths": j}).tokens)
        for i in (1, 10)
        for j in (1, 5)
    }
    assert len(texts) == 4


def test_lengths_stay_within_the_requests() -> None:
    ranked = encode(translator().network, source(0))[:1]
    network: Any = translator().network
    likeliest = network.length_logits(ranked)[0].topk(NUM_LENGTHS).indices.tolist()
    one = {"options": {"lengths": 1}}
    assert len(generate(source(0), **one).tokens) == next(n for n in likeliest if n)
    below = next(n for n in likeliest if 0 < n <= 3)
    assert len(generate(source(0), max_new_tokens=3, **one).tokens) == below
    above = next(n for n in likeliest if n >= 20)
    assert len(generate(source(0), min_new_tokens=20, **one).tokens) == above
    # No length that the network knows is long enough.
    assert len(generate(source(0), min_new_tokens=28, **one).tokens) == 28


def test_a_canvas_gives_the_length_and_keeps_its_tokens() -> None:
    canvas = [None, 7, None, None, 9, None]
    completion = generate(source(3), canvas=canvas, max_new_tokens=None)
    assert [completion.tokens[place] for place in (1, 4)] == [7, 9]
    assert len(completion.tokens) == 6 and completion.finish_reason == "length"
    assert "encoder" in completion.report.passes_by_role
    text = torch.tensor([MASK if token is None else token for token in canvas])
    expected = log_probabilities(encode(translator().network, source(3)), text).argmax(-1).tolist()
    once = generate(source(3), canvas=canvas, max_new_tokens=None, options={"iterations": 1})
    assert once.tokens == [e if c is None else c for c, e in zip(canvas, expected, strict=True)]


def test_the_history_tells_of_every_pass() -> None:
    num_shorter = 0
    for seed in range(6):
        num_shorter += _check_history(generate(source(seed), history=True, logprobs=2).choices[0])
    assert num_shorter


def test_the_trace_names_the_pass_that_predicted_a_token_last() -> None:
    """The one behind the last in which its place was opened again."""
    found = generate(source(1), history=True, options={"lengths": 1, "iterations": 6}).choices[0]
    first = min(entry.step for entry in found.history)
    opened = dict.fromkeys(range(len(found.trace)), first - 1)
    opened |= {entry.place: entry.step for entry in found.history if entry.token is None}
    steps = [entry.step for entry in found.trace]
    assert steps == [opened[place] + 1 for place in range(len(steps))]
    assert len(set(steps)) > 2


def _check_history(choice: Choice) -> bool:
    """Was a longer text ahead for a while?"""
    board: dict[int, int | None] = {}
    for _, entries in itertools.groupby(choice.history, key=lambda entry: entry.step):
        num_masked = sum(token is None for token in board.values())
        assert not board or num_masked > 0
        board |= {entry.place: entry.token for entry in entries}
    assert len({entry.step for entry in choice.history}) == 10
    assert all(len(entry.alternatives) == 2 for entry in choice.trace)
    line = [board[place] for place in sorted(board)]
    assert line == [*choice.tokens, *[None] * (len(line) - len(choice.tokens))]
    return len(line) > len(choice.tokens)


def test_networks_with_a_token_shift() -> None:
    model = translator()
    shifted = dataclasses.replace(model.abilities, token_shift=True)
    engine = tiny_engine(model=dataclasses.replace(model, abilities=shifted))
    options = {"iterations": 1}
    text = torch.full((6,), MASK)
    for tokens in (source(0), source(1)):
        told = (
            log_probabilities(encode(translator().network, tokens), text, first=0)
            .argmax(-1)
            .tolist()
        )
        canvas = {"canvas": [None] * 6, "max_new_tokens": None, "options": options}
        assert generate(tokens, engine, **canvas).tokens == told[:6]
        assert generate(tokens, **canvas).tokens == told[1:]


def test_bans_hold_where_tokens_are_placed_together() -> None:
    once: dict[str, Any] = {"options": {"iterations": 1}, "max_new_tokens": None}
    num_repeating = 0
    for seed in range(4):
        canvas = [None] * 12
        free = generate(source(seed), canvas=canvas, **once).tokens
        num_repeating += len(set(free)) < len(free)
        kept = generate(source(seed), canvas=canvas, no_repeat_ngram=1, **once)
        assert len(set(kept.tokens)) == len(kept.tokens)
        pair = (free[0], free[1])
        engine = tiny_engine(model=translator(banned=pair))
        banned = generate(source(seed), engine, canvas=canvas, **once).tokens
        assert pair not in itertools.pairwise(banned)
    assert num_repeating


def test_an_end_token_ends_the_text() -> None:
    canvas = {"canvas": [None] * 20, "max_new_tokens": None}
    free = generate(source(2), **canvas).tokens
    stopped = generate(source(2), **canvas, stop_tokens=[free[9]])
    assert stopped.tokens == free[: free.index(free[9]) + 1]
    assert stopped.finish_reason == "stop"
    engine = tiny_engine(model=translator(ends=True))
    for seed in range(9):
        held = generate(source(seed), engine, min_new_tokens=15, temperature=2.0).tokens
        assert END not in held[:14] and len(held) >= 15


def test_draws_depend_on_the_seed_alone() -> None:
    texts = [generate(source(0), temperature=1.0, seed=seed).tokens for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_company_chunks_and_preemption_change_nothing() -> None:
    requests = [
        Request(
            prompt=source(seed, length),
            method="mask_predict",
            max_new_tokens=20,
            temperature=seed % 2,
            n=1 + seed % 2,
        )
        for seed in range(2)
        for length in (3, 20)
    ]
    expected = [tiny_engine(model=translator()).generate(request) for request in requests]
    for changes in ({}, {"max_batch_tokens": 7}, {"cache_tokens": 192}):
        engine = tiny_engine(model=translator(), **changes)
        handles = [engine.submit(request) for request in requests]
        for tick in itertools.count():
            if tick % 3 == 2:
                for run in list(engine._scheduler.running):
                    engine._scheduler._preempt(run)
            if not engine.tick():
                break
        for handle, alone in zip(handles, expected, strict=True):
            for choice, other in zip(handle.result().choices, alone.choices, strict=True):
                assert choice.tokens == other.tokens
        assert_no_page_is_lost(engine)

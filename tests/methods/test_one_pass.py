"""The contract of methods (test_contract.py) for those that write a whole text in one pass."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
from tests.methods.encoder_decoders import source
from tests.methods.one_pass import generate, one_pass_model
from tests.tiny import END, assert_no_page_is_lost, run_out, tiny_engine

from anyorder.core.errors import InvalidRequest, PoolTooSmall, UnsupportedMethod, UserError
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine

METHODS = ("ctc", "dag")
CASES: dict[str, list[dict[str, Any]]] = {
    "dag": [
        {"options": {"path": "viterbi"}, "logprobs": 2},
        {"options": {"joint": False}, "temperature": 0.9, "top_p": 0.9, "n": 2},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
    ],
    "ctc": [
        {"options": {"width": 3}},
        {"temperature": 1.0, "seed": 3, "n": 2, "logprobs": 2},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
    ],
}


def engine_of(method: str, *, ends: bool = True, **changes: Any) -> Engine:
    return tiny_engine(model=one_pass_model(linked=method == "dag", ends=ends), **changes)


def requests_of(method: str) -> list[Request]:
    return [
        Request(
            **{"prompt": source(index, length), "method": method, "max_new_tokens": 40, **extra}
        )
        for index, extra in enumerate([{}, *CASES[method]])
        for length in (2, 20)
    ]


@functools.cache
def alone(method: str) -> list[Completion]:
    return [engine_of(method).generate(request) for request in requests_of(method)]


def assert_equal(completion: Completion, expected: Completion) -> None:
    for choice, other in zip(completion.choices, expected.choices, strict=True):
        assert choice.tokens == other.tokens
        assert choice.finish_reason == other.finish_reason
        assert choice.logprobs == pytest.approx(other.logprobs, abs=1e-6)


@pytest.mark.parametrize("changes", [{}, {"max_batch_tokens": 7}, {"cache_tokens": 128}])
@pytest.mark.parametrize("method", METHODS)
def test_company_chunks_and_preemption_change_nothing(method: str, changes: dict[str, int]) -> None:
    engine = engine_of(method, **changes)
    handles = [engine.submit(request) for request in requests_of(method)]
    run_out(engine, range(2, 1000, 3))
    for handle, expected in zip(handles, alone(method), strict=True):
        assert_equal(handle.result(), expected)
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_what_is_drawn(method: str) -> None:
    texts = [
        tuple(generate(method, source(0), temperature=1.0, seed=seed).tokens)
        for seed in (0, 1, 2, 3, 2)
    ]
    assert len(set(texts)) == 4 and texts[2] == texts[4]


@pytest.mark.parametrize("method", METHODS)
def test_limits_are_kept(method: str) -> None:
    text = source(3, 20)
    full = generate(method, text)
    assert len(full.tokens) > 5 and full.finish_reason == "stop"
    for limit in (1, 5):
        cut = generate(method, text, max_new_tokens=limit)
        assert cut.tokens == full.tokens[:limit] and cut.finish_reason == "length"


@pytest.mark.parametrize("method", METHODS)
def test_end_tokens_end_the_text(method: str) -> None:
    text = source(3, 20)
    free = generate(method, text).tokens
    stopped = generate(method, text, stop_tokens=[free[1]])
    assert stopped.tokens == free[: free.index(free[1]) + 1]
    assert stopped.finish_reason == "stop"
    ended = generate(method, text, engine_of(method), logit_bias={END: 1e9})
    assert ended.tokens == [END]
    going_on = generate(method, text, engine_of(method), logit_bias={END: 1e9}, ignore_end=True)
    assert set(going_on.tokens) == {END} and (method == "ctc") == (len(going_on.tokens) == 1)


@pytest.mark.parametrize("method", METHODS)
def test_emitted_pieces_add_up(method: str) -> None:
    for request in requests_of(method):
        events = list(engine_of(method).stream(request))
        completion = events[-1].completion
        assert completion is not None
        for index, choice in enumerate(completion.choices):
            own = [event for event in events if event.choice == index and event.tokens]
            assert [token for event in own for token in event.tokens] == choice.tokens
            assert len(choice.trace) == len(choice.tokens) == len(choice.logprobs)
            assert all(len(entry.alternatives) == request.logprobs for entry in choice.trace)


@pytest.mark.parametrize("method", METHODS)
def test_abort_at_any_tick_returns_all_pages(method: str) -> None:
    for request in requests_of(method):
        for num_ticks in range(4):
            engine = engine_of(method)
            handle = engine.submit(request)
            for _ in range(num_ticks):
                engine.tick()
            engine.abort(handle)
            assert handle.done and not engine.tick()
            assert_no_page_is_lost(engine)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "fields",
    [
        {"min_new_tokens": 3},
        {"repetition_penalty": 1.2},
        {"presence_penalty": 1.0},
        {"frequency_penalty": -1.0},
        {"no_repeat_ngram": 2},
        {"bad_words": ["no"]},
        {"guide": Guide.choices(["yes", "no"])},
    ],
)
def test_controls_that_depend_on_the_text_are_refused(method: str, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(InvalidRequest, match=f"{method} tells all tokens at once.*{name}"):
        generate(method, source(0), **fields)
    assert generate(method, source(0), bad_words=[]).tokens  # no words are none


@pytest.mark.parametrize("method", METHODS)
def test_a_canvas_and_bad_options_are_refused(method: str) -> None:
    with pytest.raises(UnsupportedMethod, match="cannot fill in a canvas"):
        generate(method, source(0), canvas=[None, 5])
    option = "path" if method == "dag" else "width"
    for value in ("nonsense", -1, object()):
        with pytest.raises(UserError, match=option):
            generate(method, source(0), options={option: value})


@pytest.mark.parametrize("method", METHODS)
def test_a_source_too_long_for_its_vertices_is_refused(method: str) -> None:
    engine = engine_of(method)
    longest = engine.abilities.source_length
    assert engine.abilities.vertices_per_token * (longest + 2) <= engine.abilities.context_length
    assert generate(method, source(0, longest), engine).tokens
    with pytest.raises(UserError, match=f"reads at most {longest}"):
        generate(method, source(0, longest + 1), engine)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_too_small_for_the_vertices_says_so(method: str) -> None:
    engine = engine_of(method, cache_tokens=64)
    with pytest.raises(PoolTooSmall, match="raise cache_tokens"):
        generate(method, source(0, 40), engine, max_new_tokens=5)
    assert generate(method, source(0, 4), engine, max_new_tokens=5).tokens


@pytest.mark.parametrize("method", METHODS)
def test_n_makes_choices_with_their_own_draws(method: str) -> None:
    request = Request(prompt=source(1), method=method, n=3, temperature=1.0)
    found = engine_of(method).generate(request)
    assert len({tuple(choice.tokens) for choice in found.choices}) == 3
    cold = engine_of(method).generate(dataclasses.replace(request, temperature=0.0))
    assert len({tuple(choice.tokens) for choice in cold.choices}) == 1

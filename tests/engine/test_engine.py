"""The engine: sharing, isolation, aborts, reports, many at once."""

from __future__ import annotations

import dataclasses
import random
import threading
from typing import Any

import pytest
import torch
from tests.tiny import CONTEXT, VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.batch import dense_batch
from anyorder.core.errors import (
    ContextOverflow,
    InvalidRequest,
    PoolTooSmall,
    RequestFailed,
    UnknownName,
    UserError,
)
from anyorder.core.request import Request
from anyorder.engine.engine import Engine


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


# ----------------------------------------------------------------------------------- prefix cache
def test_a_second_turn_runs_only_what_is_new() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    first = engine.generate(Request(prompt=ids(0, 50), max_new_tokens=20))
    assert first.report.num_cached_tokens == 0
    assert first.report.num_run_tokens == 50 + 19, "the last token is never run"
    turn = [*ids(0, 50), *first.tokens, 7, 8, 9]
    second = engine.generate(Request(prompt=turn, max_new_tokens=4))
    # 70 tokens were cached but the last, which was never run; pages hold 16.
    assert second.report.num_cached_tokens == 64
    assert second.report.num_run_tokens == 73 - 64 + 3
    fresh = tiny_engine(model=tiny_model(ends=False)).generate(
        Request(prompt=turn, max_new_tokens=4)
    )
    assert second.tokens == fresh.tokens


def test_requests_of_another_salt_or_without_the_cache_share_nothing() -> None:
    engine = tiny_engine()
    base = Request(prompt=ids(0, 50), max_new_tokens=2, cache_salt="alice")
    engine.generate(base)
    for other in ({"cache_salt": "bob"}, {"prefix_cache": False}, {"cache_salt": ""}):
        request = dataclasses.replace(base, **other)  # type: ignore[arg-type]
        assert engine.generate(request).report.num_cached_tokens == 0
    assert engine.generate(base).report.num_cached_tokens == 48


def test_equal_prompts_arriving_together_are_computed_once() -> None:
    engine = tiny_engine()
    requests = [
        Request(prompt=ids(0, 100), max_new_tokens=3, temperature=1.0, seed=seed)
        for seed in range(6)
    ]
    completions = engine.generate(requests)
    assert [c.report.num_cached_tokens for c in completions] == [0, 96, 96, 96, 96, 96]
    many = engine.generate(Request(prompt=ids(1, 100), max_new_tokens=3, temperature=1.0, n=4))
    assert many.report.num_cached_tokens == 3 * 96
    assert len({tuple(choice.tokens) for choice in many.choices}) > 1


# ---------------------------------------------------------------------------------------- failures
class _Faulty:
    """A network that fails whenever a batch holds a certain token."""

    def __init__(self, network: Any, poison: int, stage: str) -> None:
        self._network, self._poison, self._stage = network, poison, stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def hidden(self, batch: Any, pool: Any) -> Any:
        if self._stage == "hidden" and (batch.tokens_N == self._poison).any():
            raise RuntimeError("the kernel fell over")
        self._poisoned = (batch.tokens_N == self._poison).any()
        return self._network.hidden(batch, pool)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network.logits(hidden)
        return logits * torch.nan if self._stage == "nan" and self._poisoned else logits


@pytest.mark.parametrize("stage", ["hidden", "nan"])
def test_a_failing_request_fails_alone(stage: str) -> None:
    model = tiny_model(ends=False)
    requests = [Request(prompt=ids(seed, 10), max_new_tokens=6) for seed in range(4)]
    want = tiny_engine(model=model).generate(requests)
    used = {t for r in requests for t in r.prompt} | {t for c in want for t in c.tokens}
    poison = next(token for token in range(1, VOCABULARY) if token not in used)
    faulty: Any = _Faulty(model.network, poison, stage)
    engine = tiny_engine(model=dataclasses.replace(model, network=faulty))
    bad = engine.submit(Request(prompt=[3, poison, 4], max_new_tokens=6))
    if stage == "nan":  # NaN would reach the logits of all; let the bad one run first
        engine.tick()
    good = [engine.submit(request) for request in requests]
    while engine.tick():
        pass
    with pytest.raises(RequestFailed):
        bad.result()
    assert [handle.result().tokens for handle in good] == [c.tokens for c in want]
    assert_no_page_is_lost(engine)


def test_generate_raises_the_failure_after_the_others_have_finished() -> None:
    model = tiny_model(ends=False)
    faulty: Any = _Faulty(model.network, 60, "hidden")
    engine = tiny_engine(model=dataclasses.replace(model, network=faulty))
    with pytest.raises(RequestFailed, match="kernel fell over") as caught:
        engine.generate([Request(prompt=[60]), Request(prompt=[1], max_new_tokens=1)])
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_no_page_is_lost(engine)


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"prompt": []}, InvalidRequest, "empty"),
        ({"prompt": [1, VOCABULARY]}, InvalidRequest, f"0 to {VOCABULARY - 1}"),
        ({"prompt": [-1]}, InvalidRequest, "-1"),
        ({"prompt": [1] * CONTEXT}, ContextOverflow, "no room"),
        ({"prompt": [1] * (CONTEXT + 1), "max_new_tokens": 1}, ContextOverflow, "no room"),
        ({"prompt": [1], "max_new_tokens": CONTEXT}, ContextOverflow, f"at most {CONTEXT - 1}"),
        ({"prompt": [1], "max_new_tokens": 10**12}, ContextOverflow, f"at most {CONTEXT - 1}"),
        ({"prompt": [1], "max_new_tokens": 0}, InvalidRequest, "nothing to do"),
        ({"prompt": [1], "max_new_tokens": -1}, InvalidRequest, "max_new_tokens"),
        ({"prompt": [1], "temperature": float("nan")}, InvalidRequest, "temperature"),
        ({"prompt": [1], "temperature": -0.5}, InvalidRequest, "temperature"),
        ({"prompt": [1], "method": "autoregresive"}, UnknownName, "autoregressive"),
        ({"prompt": [1], "options": {"width": 3}}, UnknownName, "width"),
        ({"prompt": [1], "stop_tokens": [99]}, InvalidRequest, "stop_tokens"),
        ({"prompt": [1], "logit_bias": {99: 1.0}}, InvalidRequest, "logit_bias"),
        ({"prompt": "text"}, InvalidRequest, "tokenizer"),
        ({"prompt": [1], "stop": ["x"]}, InvalidRequest, "tokenizer"),
        ({"prompt": [1], "bad_words": ["x"]}, InvalidRequest, "tokenizer"),
        (
            {"prompt": [1], "method": "beam_search", "prompt_logprobs": True},
            InvalidRequest,
            "autoregressive",
        ),
        ({"prompt": [1], "method": "beam_search", "n": 5}, InvalidRequest, "width"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    engine = tiny_engine()
    with pytest.raises(error, match=message) as caught:
        engine.generate(Request(**fields))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)
    assert not engine.tick()
    assert_no_page_is_lost(engine)


def test_one_bad_request_of_a_list_stops_all_before_they_run() -> None:
    engine = tiny_engine()
    with pytest.raises(InvalidRequest):
        engine.generate([Request(prompt=[1]), Request(prompt=[99])])
    assert not engine.tick()


def test_keywords_and_requests_do_not_mix() -> None:
    engine = tiny_engine()
    with pytest.raises(InvalidRequest, match="on the requests"):
        engine.generate(Request(prompt=[1]), seed=4)
    with pytest.raises(InvalidRequest, match="nothing but requests"):
        engine.generate([Request(prompt=[1]), 5])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="one request"):
        engine.stream([Request(prompt=[1])])  # type: ignore[arg-type]


def test_what_can_never_fit_the_pool_is_refused() -> None:
    engine = tiny_engine(cache_tokens=64)
    with pytest.raises(PoolTooSmall, match="64 positions"):
        engine.generate(Request(prompt=ids(0, 60), max_new_tokens=10))
    long = Request(prompt=[1, 2], max_new_tokens=8, guidance_scale=2.0, negative_prompt=ids(0, 57))
    with pytest.raises(PoolTooSmall, match=r"negative prompt of 57 .* target model's cache of 64"):
        engine.submit(long)
    engine.abort(engine.submit(dataclasses.replace(long, negative_prompt=ids(0, 56))))
    # Eight beams over a long prompt fit only while they share it; here they soon do not.
    wide = Request(prompt=ids(0, 20), method="beam_search", max_new_tokens=40, options={"width": 8})
    handle = engine.submit(wide)
    small = engine.submit(Request(prompt=[1, 2], max_new_tokens=5))
    while engine.tick():
        pass
    with pytest.raises(PoolTooSmall, match="beam_search"):
        handle.result()
    assert len(small.result().tokens) <= 5
    assert_no_page_is_lost(engine)


# ------------------------------------------------------------------------------------------ reports
def test_report_counts_passes_and_tokens() -> None:
    engine = tiny_engine(model=tiny_model(ends=False), max_batch_tokens=16)
    report = engine.generate(Request(prompt=ids(0, 40), max_new_tokens=8)).report
    assert report.num_prompt_tokens == 40 and report.num_new_tokens == 8
    assert report.num_forward_passes == 3 + 7  # 40 tokens in chunks of 16, then one a token
    assert report.tokens_per_pass == 8 / 10
    assert report.exact and report.mean_accepted_length is None
    assert report.queue_seconds >= 0 and report.prefill_seconds > 0 and report.decode_seconds > 0


def test_score_is_the_chain_rule_over_one_parallel_pass() -> None:
    engine = tiny_engine()
    tokens = ids(3, 30)
    score = engine.score(tokens)
    assert len(score.logprobs) == 29 and score.report.num_new_tokens == 0
    assert score.total == pytest.approx(sum(score.logprobs))
    for length in (1, 13, 29):
        step = engine.generate(
            Request(prompt=tokens[:length], max_new_tokens=1, logprobs=VOCABULARY)
        )
        alternatives = dict(step.trace[0].alternatives)
        probability = torch.tensor(score.logprobs[length - 1]).exp().item()
        assert alternatives[tokens[length]] == pytest.approx(probability, rel=1e-4)
    assert engine.score([5]).logprobs == []


# ------------------------------------------------------------------------------------- many at once
def hammer(num_requests: int, seed: int) -> None:
    """Random requests, random aborts at random ticks; every page comes back."""
    rng = random.Random(seed)
    engine = tiny_engine(cache_tokens=700, max_batch_tokens=48, max_running=24)
    waiting = num_requests
    live: list[Any] = []
    done = 0
    while waiting or live:
        while waiting and len(live) < 40 and rng.random() < 0.8:
            waiting -= 1
            width = rng.choice([0, 0, 0, 2, 4])
            live.append(
                engine.submit(
                    Request(
                        prompt=ids(rng.randrange(6), rng.randrange(1, 60)),
                        max_new_tokens=rng.randrange(1, 12),
                        temperature=0.0 if width else rng.choice([0.0, 1.0]),
                        seed=rng.randrange(100),
                        method="beam_search" if width else "autoregressive",
                        options={"width": width} if width else {},
                        n=1 if width else rng.choice([1, 1, 2]),
                        guidance_scale=rng.choice([1.0, 1.0, 1.0, 2.0]),
                    )
                )
            )
        engine.tick()
        for handle in list(live):
            if rng.random() < 0.05:
                engine.abort(handle)
            if handle.done:
                done += handle.error is None
                live.remove(handle)
    assert done > num_requests // 3
    assert_no_page_is_lost(engine)


def test_hammered_with_2000_requests_and_aborts_no_page_leaks() -> None:
    hammer(2000, seed=1)


def test_threads_share_an_engine() -> None:
    engine = tiny_engine()
    requests = [Request(prompt=ids(seed, 12), max_new_tokens=10) for seed in range(8)]
    want = [tiny_engine().generate(request).tokens for request in requests]
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = engine.generate(requests[index]).tokens

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(8)] == want
    assert_no_page_is_lost(engine)


def test_closing_a_stream_aborts_it() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    stream = engine.stream(Request(prompt=[1, 2, 3], max_new_tokens=100))
    assert next(stream).tokens
    stream.close()  # type: ignore[attr-defined]
    assert not engine.tick()
    assert_no_page_is_lost(engine)


def test_close_aborts_everything() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    handle = engine.submit(Request(prompt=[1, 2, 3], max_new_tokens=100))
    engine.tick()
    engine.close()
    with pytest.raises(RequestFailed, match="aborted"):
        handle.result()
    assert_no_page_is_lost(engine)


# ---------------------------------------------------------------------------- contrastive decoding
@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_contrastive_decoding_follows_its_definition(floor: float) -> None:
    """Greedy over s * (log p - log q) + log q among tokens that p finds plausible, from scratch."""
    expert, amateur = tiny_model(0, ends=False), tiny_model(5, ends=False)
    engine = Engine(expert, draft=amateur, cache_tokens=1024)
    prompt = ids(4, 21)
    request = Request(
        prompt=prompt,
        max_new_tokens=8,
        guidance_scale=1.5,
        contrast_role="draft",
        contrast_floor=floor,
    )
    text = list(prompt)
    for _ in range(8):
        batch = dense_batch(torch.tensor([text]))
        p, q = (
            model.network.logits(model.network.hidden(batch, None)[-1:]).log_softmax(-1)[0]
            for model in (expert, amateur)
        )
        scores = 1.5 * (p - q) + q
        scores[p.exp() < floor * p.exp().max()] = -torch.inf
        text.append(int(scores.argmax()))
    assert engine.generate(request).tokens == text[len(prompt) :]
    assert engine.generate(Request(prompt=prompt, max_new_tokens=8)).tokens != text[len(prompt) :]
    assert_no_page_is_lost(engine)


def test_a_contrast_with_nobody_is_refused() -> None:
    with pytest.raises(UnknownName, match="roles: target"):
        tiny_engine().generate(Request(prompt=[1], guidance_scale=2.0, contrast_role="draft"))
    with pytest.raises(InvalidRequest, match="set a scale"):
        Request(prompt=[1], contrast_role="draft")


def test_a_draft_with_another_vocabulary_is_refused_naming_both() -> None:
    other = tiny_model()
    narrow = dataclasses.replace(
        other, abilities=dataclasses.replace(other.abilities, name="narrow", vocabulary_size=7)
    )
    with pytest.raises(UserError, match=r"narrow has 7 tokens .* tiny has 61"):
        Engine(other, draft=narrow)

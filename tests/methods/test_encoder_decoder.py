"""The methods' contract on an encoder-decoder: a method's text depends on source and options alone.

No method knows of encoders: the engine hands it a sequence that reads the source already, and the
decoder's start token as the prompt.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.methods.test_contract import with_heads
from tests.tiny import (
    CONTEXT,
    END,
    VOCABULARY,
    assert_no_page_is_lost,
    tiny_encoder_decoder,
    tiny_engine,
    tiny_model,
)

from anyorder.core import lookup
from anyorder.core.attention import BIDIRECTIONAL
from anyorder.core.batch import CrossMemory, dense_batch
from anyorder.core.errors import (
    ContextOverflow,
    InvalidRequest,
    PoolTooSmall,
    RequestFailed,
    UserError,
)
from anyorder.core.forward import (
    Decoding,
    Outputs,
    forward,
)
from anyorder.core.method import Context, Method, TextRules
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.encoder_decoder import EncoderDecoder

START = 1
CASES: dict[str, list[dict[str, Any]]] = {
    "autoregressive": [
        {"temperature": 1.0, "seed": 3},
        {"n": 3, "temperature": 1.0, "seed": 11},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
        {"guidance_scale": 1.5},
    ],
    "beam_search": [
        {"options": {"width": 4, "groups": 2, "diversity_penalty": 0.7}, "n": 4},
        {"options": {"width": 3, "length_penalty": 2.0}, "n": 2},
    ],
    "speculative": [
        {"temperature": 1.0, "options": {"adaptive": False, "length": 5}},
        {"options": {"drafter": {"name": "early_exit", "layers": 1}, "adaptive": False}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "options": {"adaptive": False}},
    ],
    "tree_search": [{"options": {"width": 3, "branch": 2, "depth": 3}}],
    "jacobi": [{"temperature": 1.0, "options": {"size": 5, "adaptive": False}}],
}


def engine(*, ends: bool = True, **changes: Any) -> Engine:
    return tiny_engine(model=with_heads(tiny_encoder_decoder(ends=ends)), **changes)


def source(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


METHODS = engine().usable_methods
ALL = [
    Request(prompt=source(index, length), method=method, max_new_tokens=8, **extra)
    for method in METHODS
    for index, extra in enumerate([{}, *CASES.get(method, [])])
    for length in (3, 40)
]


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    return [engine().generate(dataclasses.replace(r, prefix_cache=False)) for r in ALL]


def assert_equal(completion: Completion, expected: Completion) -> None:
    assert len(completion.choices) == len(expected.choices)
    for choice, other in zip(completion.choices, expected.choices, strict=True):
        assert choice.tokens == other.tokens
        assert choice.finish_reason == other.finish_reason
        assert choice.logprobs == pytest.approx(other.logprobs, abs=1e-6)


def assert_same(engine: Engine, alone: list[Completion], *, seed: int) -> None:
    order = list(range(len(ALL)))
    random.Random(seed).shuffle(order)
    completions = engine.generate([ALL[index] for index in order])
    for index, completion in zip(order, completions, strict=True):
        assert_equal(completion, alone[index])
    assert_no_page_is_lost(engine)


def test_these_methods_work() -> None:
    works = {"autoregressive", "beam_search", "blockwise", "jacobi", "lookahead", "speculative"}
    assert works | {"tree_search"} <= set(METHODS)


def test_mixed_with_every_other_method_gives_the_same(alone: list[Completion]) -> None:
    together = engine()
    assert_same(together, alone, seed=0)
    # And once more, now that every source is cached.
    assert_same(together, alone, seed=1)


@pytest.mark.parametrize("max_batch_tokens", [3, 33])
def test_chunks_do_not_change_the_answer(alone: list[Completion], max_batch_tokens: int) -> None:
    assert_same(engine(max_batch_tokens=max_batch_tokens), alone, seed=2)


def test_a_crowded_pool_does_not_change_the_answer(alone: list[Completion]) -> None:
    assert_same(engine(cache_tokens=200), alone, seed=3)


def test_preemption_does_not_change_the_answer(alone: list[Completion]) -> None:
    preempted = engine()
    handles = [preempted.submit(request) for request in ALL]
    for tick in itertools.count():
        if tick % 3 == 2:
            for run in list(preempted._scheduler.running):
                preempted._scheduler._preempt(run)
            for role in preempted.roles.values():  # and nobody finds them in the cache
                while (page := role.store.prefixes.evict()) is not None:
                    role.store.allocator.release(page)
        if not preempted.tick():
            break
    for handle, expected in zip(handles, alone, strict=True):
        assert_equal(handle.result(), expected)
    assert any(h.result().report.passes_by_role["encoder"] > 1 for h in handles)
    assert_no_page_is_lost(preempted)


def next_logits(tokens: list[int], text: list[int]) -> torch.Tensor:
    """What follows a text whose source is `tokens`, by dense passes."""
    network: Any = tiny_encoder_decoder(ends=False).network
    everything = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool)
    states = network.encode(dense_batch(torch.tensor([tokens]), everything))[None]
    batch = dense_batch(torch.tensor([text]), memory=CrossMemory(states_RSW=states))
    return network.logits(network.hidden(batch))[-1]  # type: ignore[no-any-return]


def test_greedy_is_what_dense_passes_give() -> None:
    for length in (1, 15, 16, 33):
        tokens = source(length, length)
        text = [START]
        while len(text) < 8:
            text.append(int(next_logits(tokens, text).argmax()))
        completion = engine(ends=False).generate(Request(prompt=tokens, max_new_tokens=7))
        assert completion.tokens == text[1:]
        assert completion.prompt_tokens == tokens
        assert completion.report.num_prompt_tokens == length


@pytest.mark.parametrize("negative", [[9, 8, 7, 6], None])
def test_guidance_moves_away_from_another_source(negative: list[int] | None) -> None:
    tokens, scale = source(3, 20), 1.8
    other = negative or tokens[-1:]
    text = [START]
    while len(text) < 8:
        given, free = (next_logits(s, text).log_softmax(-1) for s in (tokens, other))
        text.append(int((free + scale * (given - free)).argmax()))
    request = Request(
        prompt=tokens, max_new_tokens=7, guidance_scale=scale, negative_prompt=negative
    )
    assert engine(ends=False).generate(request).tokens == text[1:]
    assert (
        engine(ends=False)
        .generate(dataclasses.replace(request, guidance_scale=1.0, negative_prompt=None))
        .tokens
        != text[1:]
    )


@pytest.mark.parametrize("method", METHODS)
def test_abort_at_any_tick_returns_all_pages(method: str) -> None:
    for request in [r for r in ALL if r.method == method][:4]:
        for num_ticks in range(6):
            stopped = engine(max_batch_tokens=16)
            handle = stopped.submit(request)
            for _ in range(num_ticks):
                stopped.tick()
            stopped.abort(handle)
            assert handle.done and not stopped.tick()
            assert_no_page_is_lost(stopped)


# -------------------------------------------------------------------------------- what is encoded
def test_a_source_is_encoded_once_for_all_choices_beams_and_requests() -> None:
    shared = engine()
    request = Request(prompt=source(0, 37), max_new_tokens=6, temperature=1.0, n=4)
    completion = shared.generate(request)
    assert completion.report.passes_by_role["encoder"] == 1
    assert completion.report.num_cached_tokens == 3 * 37
    beams = dataclasses.replace(
        request, n=2, temperature=0.0, method="beam_search", options={"width": 4}
    )
    again = shared.generate(beams)
    assert "encoder" not in again.report.passes_by_role
    assert again.report.num_cached_tokens == 37
    # Another source with the same beginning has other keys and values throughout.
    longer = dataclasses.replace(request, prompt=[*source(0, 37), 5], n=1)
    assert shared.generate(longer).report.num_cached_tokens == 0
    for other in ({"prefix_cache": False}, {"cache_salt": "bob"}):
        private = dataclasses.replace(request, n=1, **other)  # type: ignore[arg-type]
        assert shared.generate(private).report.num_cached_tokens == 0


def test_decoders_share_prefixes_only_when_they_read_the_same() -> None:
    """Start tokens over a page long are a prefix; what is cached of them depends on the source."""
    rules = TextRules(start_tokens=tuple(source(9, 40)))
    model = tiny_encoder_decoder(ends=False, text_rules=rules)
    texts = [
        tiny_engine(model=model).generate(Request(prompt=source(seed, 9), max_new_tokens=5)).tokens
        for seed in range(3)
    ]
    shared = tiny_engine(model=model)
    for seed in range(3):
        request = Request(prompt=source(seed, 9), max_new_tokens=5)
        assert shared.generate(request).tokens == texts[seed]
        assert shared.generate(request).report.num_cached_tokens == 9 + 32
    assert len({tuple(text) for text in texts}) == 3


def test_the_source_decides_the_text() -> None:
    texts = {
        tuple(engine(ends=False).generate(Request(prompt=source(i, 20), max_new_tokens=8)).tokens)
        for i in range(5)
    }
    assert len(texts) == 5


def test_a_run_without_pages_for_its_source_waits_for_them() -> None:
    crowded = engine(cache_tokens=64, ends=False)
    requests = [Request(prompt=source(seed, 50), max_new_tokens=9) for seed in range(4)]
    completions = crowded.generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.tokens == engine(ends=False).generate(request).tokens
        assert completion.report.num_preemptions == 0
    assert_no_page_is_lost(crowded)


# ------------------------------------------------------------------------------- what is forced
def test_first_and_last_tokens_are_forced_by_every_method() -> None:
    rules = TextRules(start_tokens=(START,), first_token=7, last_tokens=frozenset({END}))
    model = with_heads(tiny_encoder_decoder(text_rules=rules))
    for method in METHODS:
        request = Request(prompt=source(0, 5), method=method, max_new_tokens=6, min_new_tokens=6)
        completion = tiny_engine(model=model).generate(request)
        assert completion.tokens[0] == 7, method
        assert completion.tokens[-1] == END and len(completion.tokens) == 6, method
        assert END not in completion.tokens[:-1]
        # A search adds up scores, in which what is forced is certain.
        assert (completion.logprobs[0] == 0) == (method in ("beam_search", "tree_search"))
    free = dataclasses.replace(request, method="autoregressive", min_new_tokens=0, ignore_end=True)
    assert tiny_engine(model=model).generate(free).tokens[-1] != END


def test_banned_tokens_never_occur() -> None:
    free = engine(ends=False).generate(Request(prompt=source(0, 20), max_new_tokens=8)).tokens
    rules = TextRules(start_tokens=(START,), banned=((free[0],),))
    model = tiny_encoder_decoder(ends=False, text_rules=rules)
    kept = tiny_engine(model=model).generate(Request(prompt=source(0, 20), max_new_tokens=8))
    assert free[0] not in kept.tokens


# ------------------------------------------------------------------------ encoders asked by hand
@dataclass(frozen=True, kw_only=True)
class Rereads(Method):
    """Encodes the reversed source itself, asks for its length, and decodes from that."""

    def decode(self, context: Context) -> Decoding:
        with context.sequence() as own, context.sequence("encoder") as encoder:
            assert own.memory is not None
            tokens = own.memory.tokens[::-1]
            lengths = yield from forward(
                encoder,
                tokens,
                0,
                attention=BIDIRECTIONAL,
                rows=(0,),
                outputs=Outputs(token=False, logprob=False, top=3),
            )
            found.append([length for length, _ in lengths.top[0]])
            text = list(context.prompt)
            result = yield from forward(own, text, 0, memory=encoder)
            while not context.finished:
                context.emit(result.tokens, result.logprobs)
                text += result.tokens
                result = yield from forward(own, text[-1:], len(text) - 1)


found: list[list[int]] = []


def test_methods_may_encode_what_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    find = lookup.find
    monkeypatch.setattr(
        lookup,
        "find",
        lambda folder, name, kind: Rereads if name == "rereads" else find(folder, name, kind=kind),
    )
    model = tiny_encoder_decoder(ends=False, length_classes=9)
    network = model.network
    assert isinstance(network, EncoderDecoder)
    tokens = source(4, 21)
    request = Request(prompt=tokens, max_new_tokens=8)
    expected = tiny_engine(model=model).generate(dataclasses.replace(request, prompt=tokens[::-1]))
    own = dataclasses.replace(request, method="rereads", prefix_cache=False)
    reread = tiny_engine(model=model)
    assert reread.generate(own).tokens == expected.tokens
    everything = torch.ones(1, 21, 21, dtype=torch.bool)
    states = network.encode(dense_batch(torch.tensor([tokens[::-1]]), everything))
    assert found[-1] == network.length_logits(states[:1])[0].topk(3).indices.tolist()
    # Preempted, it is encoded again as it was.
    handle = reread.submit(own)
    for tick in itertools.count():
        if tick % 4 == 3:
            for run in list(reread._scheduler.running):
                reread._scheduler._preempt(run)
        if not reread.tick():
            break
    assert handle.result().tokens == expected.tokens
    assert_no_page_is_lost(reread)


# -------------------------------------------------------------------------------- what is refused
def test_what_cannot_be_is_refused() -> None:
    small = engine(cache_tokens=48)
    short: dict[str, Any] = {"prompt": [1, 2], "max_new_tokens": 4}
    with pytest.raises(ContextOverflow, match=f"{CONTEXT + 1} tokens; the encoder of tiny reads"):
        small.generate(Request(prompt=source(0, CONTEXT + 1)))
    with pytest.raises(PoolTooSmall, match="encoder's cache of 48"):
        small.generate(Request(prompt=source(0, 49), max_new_tokens=4))
    with pytest.raises(InvalidRequest, match="gives it no probabilities"):
        small.generate(Request(**short, prompt_logprobs=True))
    with pytest.raises(InvalidRequest, match="is the encoder tiny, which cannot run by itself"):
        small.generate(Request(**short, guidance_scale=2.0, contrast_role="encoder"))
    with pytest.raises(ContextOverflow, match="the negative_prompt has"):
        small.generate(Request(**short, guidance_scale=2.0, negative_prompt=source(0, CONTEXT + 1)))
    with pytest.raises(UserError, match="draft model tiny is an encoder-decoder"):
        tiny_engine(model=tiny_model(), draft=tiny_encoder_decoder())


def test_a_failure_in_the_encoder_fails_its_request_alone() -> None:
    model = tiny_encoder_decoder(ends=False)
    network: Any = model.network
    poisoned = tiny_engine(model=model)
    encode = network.encode

    def fails(batch: Any) -> Any:
        assert 60 not in batch.tokens_N, "poison"
        return encode(batch)

    network.encode = fails
    try:
        good = Request(prompt=[3, 4, 5], max_new_tokens=5)
        handles = poisoned.submit_all([good, dataclasses.replace(good, prompt=[3, 60])])
        while poisoned.tick():
            pass
        with pytest.raises(RequestFailed, match="poison"):
            handles[1].result()
        assert len(handles[0].result().tokens) == 5
        assert_no_page_is_lost(poisoned)
    finally:
        del network.encode

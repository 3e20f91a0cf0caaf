"""The contract of every decoding method, applied to each by merely existing.

Tiny random models in float64, no tokenizer unless text matters. A method that needs options or a
longer prompt to be interesting gets them in CASES; one that is not listed runs with its defaults.
What runs on another kind of network (patches, an encoder) is held to the same in its own tests.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import string
import tempfile
from typing import Any

import pytest
import tokenizers
import torch
from tests.tiny import END, VOCABULARY, assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model

from anyorder.core import lookup
from anyorder.core.errors import (
    InvalidRequest,
    PoolTooSmall,
    UnknownName,
    UnsupportedMethod,
    UserError,
)
from anyorder.core.method import Abilities, Method, Needs
from anyorder.core.options import describe
from anyorder.core.plans import PlanTokens
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.drafters.medusa import MedusaHeads, NetworkWithHeads
from anyorder.model.loaded import LoadedModel
from anyorder.model.tokenizer import Tokenizer
from anyorder.model.transformer import Transformer

LINE = 1
"""The line break among the letters."""
SMALL_PLANS = {"points": 3, "plan_length": 16, "part_length": 4, "plan_lead": "1."}
# Beyond the defaults: options worth mixing, and the controls that a method accepts.
CASES: dict[str, list[dict[str, Any]]] = {
    "autoregressive": [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5},
        {"prompt_logprobs": True, "logprobs": 2},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
        {"n": 3, "temperature": 1.0, "seed": 11},
    ],
    "beam_search": [
        {"options": {"width": 4, "groups": 2, "diversity_penalty": 0.7}, "n": 4},
        {"options": {"width": 3, "early_stopping": "never", "length_penalty": 2.0}, "n": 2},
        {"no_repeat_ngram": 2, "options": {"width": 2}},
    ],
    "speculative": [
        {"temperature": 1.0, "seed": 3, "options": {"adaptive": False, "length": 5}},
        {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5, "logprobs": 2},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "options": {"adaptive": False}},
        {"n": 2, "temperature": 1.0, "options": {"drafter": "draft_model"}},
        {
            "temperature": 1.0,
            "options": {"drafter": "draft_model", "acceptance": "ratio", "length": 4},
        },
        {
            "temperature": 1.0,
            "options": {
                "drafter": {"name": "draft_model", "branches": "3,2"},
                "acceptance": "ratio",
                "length": 3,
            },
        },
        {"options": {"drafter": {"name": "draft_model", "branches": "2,2"}, "adaptive": False}},
        {"temperature": 0.9, "options": {"acceptance": "typical", "adaptive": False}},
        {"temperature": 1.0, "options": {"drafter": {"name": "early_exit", "layers": 1}}},
        {"options": {"drafter": {"name": "medusa", "nodes": 12}, "adaptive": False}},
    ],
    "block_diffusion": [
        {"options": {"block_size": 6, "window": 3, "cache": "prefix"}, "guidance_scale": 1.7},
        {"temperature": 1.0, "seed": 7, "options": {"block_size": 6, "window": 3, "cache": "dual"}},
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"commit": "random"}},
        {"no_repeat_ngram": 2, "logprobs": 2, "options": {"block_size": 3, "steps": 2}},
        {"temperature": 1.0, "seed": 4, "options": {"window": 2, "schedule": "late", "steps": 3}},
        {
            "temperature": 0.9,
            "repetition_penalty": 1.2,
            "options": {"block_size": 16, "steps": 5, "revise": "lowest"},
        },
        {
            "temperature": 1.0,
            "n": 2,
            "options": {
                "in_flight": 3,
                "block_size": 4,
                "commit": {"name": "threshold", "level": 0.04},
            },
        },
    ],
    "blockwise": [{"temperature": 1.0, "seed": 3}, {"n": 2, "options": {"size": 2}}],
    "gibbs": [
        {
            "temperature": 1.0,
            "top_p": 0.9,
            "options": {"order": "sequential", "sweeps": 1, "burn_in": 1},
        },
    ],
    "insertion": [
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"iterations": 3}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "logprobs": 2},
        {"no_repeat_ngram": 2, "min_new_tokens": 7, "options": {"penalty": 2.0}},
        {"canvas": [None, 9, None, None, 7, None], "max_new_tokens": None},
    ],
    "jacobi": [
        {"temperature": 1.0, "seed": 3, "options": {"size": 5, "adaptive": False}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "logprobs": 2},
    ],
    "lookahead": [
        {
            "temperature": 1.0,
            "seed": 3,
            "options": {"window": 4, "ngram": 3, "guesses": 2, "adaptive": False},
        },
        {"repetition_penalty": 1.2, "logprobs": 2},
    ],
    "mask_predict": [
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"iterations": 3}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "logprobs": 2},
        {"no_repeat_ngram": 2, "options": {"iterations": 1}},
    ],
    "masked_diffusion": [
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"commit": "ancestral", "steps": 9}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7], "logprobs": 2},
        {"no_repeat_ngram": 2, "options": {"window": 4, "steps": 2}},
        {"options": {"window": 4, "cache": "prefix"}, "guidance_scale": 1.7},
        {"temperature": 1.0, "seed": 6, "options": {"window": 6, "cache": "dual"}},
        {"temperature": 0.9, "options": {"steps": 5, "revise": "cap"}},
        {"canvas": [None, 9, None, None, 7, None], "max_new_tokens": None},
    ],
    "outline": [
        {"temperature": 1.0, "seed": 6, "logit_bias": {LINE: 1.5}, "options": SMALL_PLANS},
        {
            "temperature": 1.0,
            "seed": 6,
            "logprobs": 2,
            "logit_bias": {LINE: 1.5},
            "options": {**SMALL_PLANS, "depth": 2},
        },
        {
            "temperature": 0.8,
            "seed": 11,
            "n": 2,
            "repetition_penalty": 1.2,
            "guidance_scale": 1.7,
            "negative_prompt": [5, 6, 7],
            "logit_bias": {LINE: 1.5},
            "options": SMALL_PLANS,
        },
        {
            "temperature": 1.0,
            "seed": 6,
            "logit_bias": {LINE: 1.5},
            "max_new_tokens": 40,
            "options": {**SMALL_PLANS, "rounds": 2, "heading": "{point}: "},
        },
        {
            "temperature": 0.6,
            "seed": 2,
            "n": 2,
            "logit_bias": {LINE: 1.5},
            "max_new_tokens": 40,
            "options": {**SMALL_PLANS, "rounds": 1, "judge": "draft", "weakest": 1},
        },
    ],
    "planned_diffusion": [
        {"temperature": 1.0, "seed": 3, "logit_bias": {54: 4.0, 50: 4.0, 51: 3.0}},
        {
            "logit_bias": {54: 6.0, 50: 5.0, 51: 4.0},
            "options": {"default_length": 4, "step_ratio": 0.5, "commit": "entropy"},
            "logprobs": 2,
        },
        {
            "temperature": 0.8,
            "repetition_penalty": 1.2,
            "n": 2,
            "logit_bias": {54: 4.0, 50: 4.0, 51: 3.0},
            "options": {"keep_tags": True, "commit": {"name": "ancestral"}, "step_ratio": 0.3},
        },
    ],
    "semi_autoregressive": [
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"size": 3, "ahead": 2}},
        {"no_repeat_ngram": 2, "logprobs": 2, "options": {"size": 5}},
    ],
    "tree_search": [
        {"options": {"width": 3, "branch": 2, "depth": 3}},
        {"no_repeat_ngram": 2, "options": {"width": 2}},
    ],
    "uniform_diffusion": [
        {"temperature": 1.0, "seed": 3, "n": 2, "options": {"steps": 6}},
        {
            "guidance_scale": 1.7,
            "negative_prompt": [5, 6, 7],
            "options": {"sampler": "renoise", "steps": 5},
        },
        {
            "no_repeat_ngram": 2,
            "canvas": [None, 9, None, None, 7, None],
            "max_new_tokens": None,
            "options": {"sampler": "renoise", "commit": "confidence", "steps": 5},
        },
    ],
}
MASK = VOCABULARY - 1
TAGS = PlanTokens(
    topic=50, topic_end=51, span=52, span_end=53, sync=54, pad=55, digits={40: "1", 41: "2"}
)


@functools.cache
def letters() -> Tokenizer:
    """One token a letter, for methods that go by the text."""
    alphabet = f"!Ċ.:Ġ*{string.digits}{string.ascii_letters}"[:VOCABULARY]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as folder:
        backend.save(f"{folder}/tokenizer.json")
        return Tokenizer.from_folder(folder)


@functools.cache
def contract_model(*, ends: bool) -> LoadedModel:
    """The tiny model with what any method may need: further prediction heads, a mask token, the
    tags of plans, edit heads."""
    model = with_heads(with_edits(tiny_model(ends=ends)))
    abilities = dataclasses.replace(
        model.abilities,
        attention=frozenset({"causal", "bidirectional"}),
        mask_token=MASK,
        block_size=5,
        plan_tokens=TAGS,
    )
    return dataclasses.replace(model, abilities=abilities, tokenizer=letters())


def runs_on_the_contract_model(method: str) -> bool:
    """Does it need no other kind of network?"""
    cls: type[Method] = lookup.find("methods", method, kind="method")
    return cls.needs.missing(contract_model(ends=True).abilities, ("target", "draft")) is None


def with_edits(model: LoadedModel) -> LoadedModel:
    """The model with edit heads, to which a text never seems long enough."""
    network = Transformer.random(tiny_config(insertion_classes=14), seed=0, dtype=torch.float64)
    network.edit_head.insertion.bias.add_(2.0 * torch.arange(14))
    network.edit_head.deletion.bias.sub_(1.0)
    abilities = dataclasses.replace(model.abilities, num_insertions=14)
    return dataclasses.replace(model, network=network, abilities=abilities)


def with_heads(model: LoadedModel) -> LoadedModel:
    """The model with three further prediction heads."""
    base = model.network
    assert isinstance(base, Transformer)
    sizes = {"width": base.config.width, "vocabulary": VOCABULARY}
    heads = MedusaHeads(num_heads=3, num_blocks=1, **sizes).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in heads.parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
    return dataclasses.replace(
        model,
        network=NetworkWithHeads(base, heads),
        abilities=dataclasses.replace(model.abilities, num_heads=3),
    )


METHODS = [name for name in lookup.names("methods") if runs_on_the_contract_model(name)]
SAMPLES = {name for name in METHODS if name not in {"beam_search", "tree_search"}}


def contract_engine(*, ends: bool = True, **changes: Any) -> Engine:
    """An engine with what any method of CASES may ask for."""
    return tiny_engine(model=contract_model(ends=ends), draft=tiny_model(1), **changes)


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def requests_of(method: str) -> list[Request]:
    """A few requests of one method, with prompts of different lengths and a shared beginning."""
    found = []
    for index, extra in enumerate([{}, *CASES.get(method, [])]):
        for length in (3, 40):
            tokens = prompt(0, 20)[:length] + prompt(index, max(0, length - 20))
            found.append(
                Request(**{"prompt": tokens, "method": method, "max_new_tokens": 12, **extra})
            )
    return found


ALL = [request for method in METHODS for request in requests_of(method)]


def assert_equal(completion: Completion, expected: Completion) -> None:
    """What must not depend on company, chunks, caches or preemption."""
    assert len(completion.choices) == len(expected.choices)
    for choice, other in zip(completion.choices, expected.choices, strict=True):
        assert choice.tokens == other.tokens
        assert choice.finish_reason == other.finish_reason
        assert choice.logprobs == pytest.approx(other.logprobs, abs=1e-6)
    assert completion.prompt_logprobs == (
        expected.prompt_logprobs and pytest.approx(expected.prompt_logprobs, abs=1e-6)
    )


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    """Every request in an engine of its own, without prefix sharing."""
    found = []
    for request in ALL:
        with_own_cache = dataclasses.replace(request, prefix_cache=False)
        found.append(contract_engine().generate(with_own_cache))
    return found


def shuffled(seed: int) -> list[int]:
    order = list(range(len(ALL)))
    random.Random(seed).shuffle(order)
    return order


def assert_same(engine: Engine, order: list[int], alone: list[Completion]) -> None:
    completions = engine.generate([ALL[index] for index in order])
    for index, completion in zip(order, completions, strict=True):
        assert_equal(completion, alone[index])
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_with_every_other_method_gives_the_same(alone: list[Completion], seed: int) -> None:
    engine = contract_engine()
    order = shuffled(seed)
    assert_same(engine, order, alone)
    # And once more, now that every prefix is cached.
    assert_same(engine, order[::-1], alone)


@pytest.mark.parametrize("max_batch_tokens", [1, 7, 33])
def test_chunks_do_not_change_the_answer(alone: list[Completion], max_batch_tokens: int) -> None:
    assert_same(contract_engine(max_batch_tokens=max_batch_tokens), shuffled(4), alone)


def test_preemption_does_not_change_the_answer(alone: list[Completion]) -> None:
    engine = contract_engine()
    handles = [engine.submit(request) for request in ALL]
    following = 2
    for tick in itertools.count():
        if tick == following:
            # Rarer and rarer: every two-way chunk takes a tick to be replayed.
            following += 3 + tick // 30
            for run in list(engine._scheduler.running):
                engine._scheduler._preempt(run)
        if not engine.tick():
            break
    for index, handle in enumerate(handles):
        assert_equal(handle.result(), alone[index])
    assert sum(handle.result().report.num_preemptions for handle in handles) > len(ALL)
    assert_no_page_is_lost(engine)


def test_a_crowded_pool_preempts_and_does_not_change_the_answer(alone: list[Completion]) -> None:
    engine = contract_engine(cache_tokens=400)
    order = [index for index in shuffled(5) if fits(engine, ALL[index])]
    assert len(order) > 0.9 * len(ALL)
    assert_same(engine, order, alone)


def fits(engine: Engine, request: Request) -> bool:
    """Is it not refused for what it may need by itself?"""
    try:
        engine.abort(engine.submit(request))
    except PoolTooSmall:
        return False
    return True


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_text_other_seed_other_text(method: str) -> None:
    if method not in SAMPLES:
        with pytest.raises(InvalidRequest, match="temperature"):
            contract_engine().generate(Request(prompt=[1], method=method, temperature=1.0))
        return
    base = Request(prompt=[1, 2], method=method, max_new_tokens=16, temperature=1.0)
    engine = contract_engine(ends=False)
    texts = {
        seed: tuple(engine.generate(dataclasses.replace(base, seed=seed)).tokens)
        for seed in range(6)
    }
    assert len(set(texts.values())) == 6
    again = dataclasses.replace(base, seed=2)
    assert tuple(engine.generate(again).tokens) == texts[2]


@pytest.mark.parametrize("method", METHODS)
def test_limits_are_kept(method: str) -> None:
    engine = contract_engine(ends=False)
    for limit in (1, 2, 9):
        request = Request(prompt=[4, 9], method=method, max_new_tokens=limit)
        completion = engine.generate(request)
        assert len(completion.tokens) == limit == len(completion.logprobs)
        assert completion.finish_reason == "length"
        assert completion.report.num_new_tokens == limit


@pytest.mark.parametrize("method", METHODS)
def test_end_tokens_end_the_text(method: str) -> None:
    engine = contract_engine(ends=False)
    free = engine.generate(Request(prompt=[4, 9], method=method, max_new_tokens=12))
    last = free.tokens[5]
    request = Request(prompt=[4, 9], method=method, max_new_tokens=12, stop_tokens=[last])
    stopped = engine.generate(request)
    assert stopped.finish_reason == "stop"
    assert stopped.tokens.index(last) == len(stopped.tokens) - 1
    held_back = dataclasses.replace(request, min_new_tokens=12)
    assert last not in engine.generate(held_back).tokens


@pytest.mark.parametrize("method", METHODS)
def test_emitted_pieces_add_up(method: str) -> None:
    for request in requests_of(method):
        engine = contract_engine()
        events = list(engine.stream(request))
        completion = events[-1].completion
        assert completion is not None
        for index, choice in enumerate(completion.choices):
            own = [event for event in events if event.choice == index and event.tokens]
            assert [token for event in own for token in event.tokens] == choice.tokens
            assert [e.finish_reason for e in own if e.finish_reason] == [choice.finish_reason]
            assert len(choice.trace) == len(choice.tokens)
            steps = [entry.step for entry in choice.trace]
            if request.canvas is not None:  # its fixed tokens stood there before
                steps = [step for step in steps if step]
            assert all(1 <= step <= completion.report.num_forward_passes for step in steps)


@pytest.mark.parametrize("method", METHODS)
def test_abort_at_any_tick_returns_all_pages(method: str) -> None:
    for request in requests_of(method):
        for num_ticks in range(8):
            engine = contract_engine(max_batch_tokens=16)
            handle = engine.submit(request)
            for _ in range(num_ticks):
                engine.tick()
            engine.abort(handle)
            engine.abort(handle)
            assert handle.done and not engine.tick()
            assert_no_page_is_lost(engine)


@pytest.mark.parametrize("method", METHODS)
def test_options_out_of_range_are_refused(method: str) -> None:
    cls: type[Method] = lookup.find("methods", method, kind="method")
    engine = contract_engine()
    for option in describe(cls):
        is_text = option.kind is str and not option.choices
        bad: list[object] = [object(), *([] if is_text else ["nonsense"])]
        if option.bounds is not None:
            bad += [option.bounds.minimum - 1, option.bounds.maximum + 1, float("nan")]
        for value in bad:
            with pytest.raises(UserError, match=option.name):
                engine.generate(Request(prompt=[1], method=method, options={option.name: value}))
    with pytest.raises(UnknownName, match="no_such"):
        engine.generate(Request(prompt=[1], method=method, options={"no_such": 1}))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_what_it_needs_is_refused(method: str) -> None:
    cls: type[Method] = lookup.find("methods", method, kind="method")
    unable = Abilities(name="mute", vocabulary_size=9, context_length=9, attention=frozenset())
    assert isinstance(cls.needs, Needs)
    with pytest.raises(UnsupportedMethod, match=f"{method} needs .* supports: other"):
        cls.require(method, unable, ("target",), ["other"])


@pytest.mark.parametrize("method", METHODS)
def test_says_what_it_is(method: str) -> None:
    cls: type[Method] = lookup.find("methods", method, kind="method")
    assert cls.__doc__ and isinstance(cls.exact, bool)
    assert END in tiny_model().abilities.end_tokens

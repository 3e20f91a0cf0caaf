"""CALM decoding: the network's own draws, in any company, and from a folder."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.model.test_calm import SIZES, calm, fields
from tests.tiny import assert_no_page_is_lost, run_out, tiny_engine
from tests.training.runs import byte_tokenizer

from anyorder.core.batch import dense_batch
from anyorder.core.errors import InvalidRequest, UnsupportedMethod, UserError
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.calm import Calm, calm_abilities, make_calm
from anyorder.model.calm_autoencoder import CalmAutoencoder, start
from anyorder.model.loaded import LoadedModel, load
from anyorder.model.plain_folder import save_plain
from anyorder.sampling.draws import uniforms

K, END = 3, 0


@functools.cache
def network() -> Calm:
    return calm().double()


def engine(*, ends: bool = True, **changes: Any) -> Engine:
    abilities = calm_abilities("tiny calm", network(), None)
    if not ends:
        abilities = dataclasses.replace(abilities, end_tokens=frozenset())
    return tiny_engine(model=LoadedModel(network=network(), abilities=abilities), **changes)


def request(prompt: list[int], **changes: Any) -> Request:
    return Request(**{"prompt": prompt, "method": "calm", "max_new_tokens": 12, **changes})


def draws(text: list[int], *, count: int, seed: int = 0, choice: int = 0) -> np.ndarray:
    """What the network itself draws after whole patches, all of them run at once."""
    patches_NK = torch.tensor(text).view(-1, K)
    batch = dense_batch(torch.zeros(1, len(patches_NK), dtype=torch.int64))
    with torch.no_grad():
        hidden_NW = network().hidden_patches(patches_NK, batch)
        key = (seed, choice, zlib.crc32(b"target"), len(patches_NK))
        noise = uniforms(count * network().noise_width, [key]).reshape(1, count, -1) - 0.5
        vectors_MSL = network().draw(hidden_NW[-1:], torch.from_numpy(noise))
        return network().tokens(vectors_MSL[0]).numpy()


PROMPT = [4, 9, 50, 33, 2, 7]


@pytest.mark.parametrize("seed", [0, 5])
def test_at_temperature_1_every_patch_is_one_draw(seed: int) -> None:
    found = engine(ends=False).generate(request(PROMPT, temperature=1.0, seed=seed))
    text = list(PROMPT)
    for _ in range(4):
        text += draws(text, count=1, seed=seed)[0].tolist()
    assert found.tokens == text[len(PROMPT) :]
    assert found.report.num_forward_passes == 4
    assert found.logprobs == [0] * 12


def test_greedy_takes_the_most_frequent_draw() -> None:
    found = engine(ends=False).generate(request(PROMPT, options={"candidates": 64}))
    text = list(PROMPT)
    for _ in range(4):
        counts = Counter(map(tuple, draws(text, count=64)))
        (patch, _), *_ = counts.most_common()  # of equals the first drawn
        text += map(int, patch)
    assert found.tokens == text[len(PROMPT) :]
    assert all(logprob <= 0 for logprob in found.logprobs)


def test_choices_draw_with_their_own_numbers() -> None:
    found = engine(ends=False).generate(request(PROMPT, temperature=1.0, n=3, seed=4))
    for index, choice in enumerate(found.choices):
        assert choice.tokens[:K] == draws(PROMPT, count=1, seed=4, choice=index)[0].tolist()
    assert len({tuple(choice.tokens) for choice in found.choices}) == 3


def test_the_rest_of_a_prompt_begins_the_first_patch() -> None:
    all_draws = draws(PROMPT, count=200)
    begins = int(all_draws[3, 0])
    matching = Counter(tuple(map(int, d)) for d in all_draws if d[0] == begins)
    found = engine(ends=False).generate(request([*PROMPT, begins], max_new_tokens=5))
    (patch, _), *_ = matching.most_common()
    assert tuple(found.tokens[:2]) == patch[1:]
    # Then it goes on as if the whole patch had been given.
    rest = engine(ends=False).generate(request([*PROMPT, *patch], max_new_tokens=3))
    assert found.tokens[2:] == rest.tokens


def test_a_prompt_shorter_than_a_patch_is_filled_up() -> None:
    found = engine(ends=False).generate(request([7], temperature=1.0, seed=2))
    assert found.tokens[:K] == draws([7, END, END], count=1, seed=2)[0].tolist()
    (note,) = found.report.notes
    assert "shorter than a patch of 3 tokens" in note


def test_the_text_ends_inside_a_patch() -> None:
    free = engine(ends=False).generate(request(PROMPT, temperature=1.0)).tokens
    for place in range(1, 8):
        if free[place] in free[:place]:
            continue
        ended = engine().generate(
            request(PROMPT, temperature=1.0, stop_tokens=[free[place]], ignore_end=True)
        )
        assert ended.tokens == free[: place + 1] and ended.finish_reason == "stop"
    for limit in (1, 2, 3, 4, 7):
        cut = engine(ends=False).generate(request(PROMPT, temperature=1.0, max_new_tokens=limit))
        assert cut.tokens == free[:limit] and cut.finish_reason == "length"


def test_streams_patch_by_patch() -> None:
    events = list(engine(ends=False).stream(request(PROMPT, temperature=1.0)))
    assert [len(event.tokens) for event in events] == [3, 3, 3, 3, 0]
    completion = events[-1].completion
    assert completion is not None
    assert [token for event in events for token in event.tokens] == completion.tokens
    assert [entry.step for entry in completion.trace] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


REQUESTS = [
    request([(7 * i + j) % 60 + 1 for j in range(length)], seed=i, **extra)
    for i, (length, extra) in enumerate(
        [
            (1, {}),
            (3, {"temperature": 1.0}),
            (40, {"temperature": 0.5, "options": {"candidates": 30}}),
            (41, {"temperature": 1.0, "n": 2}),
            (42, {"options": {"candidates": 7}}),
            (90, {"temperature": 0.25, "max_new_tokens": 5}),
        ]
    )
]


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    return [engine().generate(item) for item in REQUESTS]


def assert_same(found: list[Completion], alone: list[Completion]) -> None:
    for completion, expected in zip(found, alone, strict=True):
        assert [c.tokens for c in completion.choices] == [c.tokens for c in expected.choices]
        for choice, other in zip(completion.choices, expected.choices, strict=True):
            assert choice.logprobs == pytest.approx(other.logprobs)
            assert choice.finish_reason == other.finish_reason


@pytest.mark.parametrize("changes", [{}, {"max_batch_tokens": 5}, {"cache_tokens": 160}])
def test_company_chunks_and_crowds_change_nothing(
    alone: list[Completion], changes: dict[str, int]
) -> None:
    busy = engine(**changes)
    assert_same(busy.generate(REQUESTS), alone)
    assert_same(busy.generate(REQUESTS[::-1])[::-1], alone)
    assert_no_page_is_lost(busy)


def test_preemption_changes_nothing(alone: list[Completion]) -> None:
    busy = engine()
    handles = busy.submit_all(REQUESTS)
    run_out(busy, range(2, 1000, 3))
    assert_same([handle.result() for handle in handles], alone)
    assert sum(handle.result().report.num_preemptions for handle in handles) > len(REQUESTS)
    assert_no_page_is_lost(busy)


def test_abort_returns_all_pages() -> None:
    for num_ticks in range(5):
        busy = engine(max_batch_tokens=4)
        handle = busy.submit(REQUESTS[2])
        for _ in range(num_ticks):
            busy.tick()
        busy.abort(handle)
        assert not busy.tick()
        assert_no_page_is_lost(busy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 4),
        ("min_p", 0.1),
        ("typical_p", 0.9),
        ("repetition_penalty", 1.2),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("no_repeat_ngram", 2),
        ("min_new_tokens", 3),
        ("logit_bias", {4: 1.0}),
        ("bad_words", ["no"]),
        ("guide", Guide.regex("a")),
        ("guidance_scale", 2.0),
        ("logprobs", 2),
        ("prompt_logprobs", True),
    ],
)
def test_controls_that_need_probabilities_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"so {name} cannot be honoured"):
        engine().generate(request(PROMPT, **{name: value}))


@pytest.mark.parametrize("temperature", [1.2, 0.7, 0.4, 3.0])
def test_temperatures_are_one_over_whole_numbers(temperature: float) -> None:
    with pytest.raises(InvalidRequest, match=r"0 or 1 over a whole number .* got"):
        engine().generate(request(PROMPT, temperature=temperature))
    for fine in (0.33, 0.2, 0.01):
        engine().generate(request(PROMPT, temperature=fine, options={"candidates": 2}))


def test_methods_and_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        UnsupportedMethod, match=r"one by one; tiny calm reads patches of 3.*: calm"
    ):
        engine().generate(request(PROMPT, method="autoregressive"))
    assert engine().usable_methods == ["calm"]
    with pytest.raises(UnsupportedMethod, match="calm needs patches of tokens; tiny reads"):
        tiny_engine().generate(request(PROMPT))
    with pytest.raises(UserError, match="canvas"):
        engine().generate(request(PROMPT, canvas=[None, 4]))


def test_a_folder_loads_and_writes_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    sizes = dataclasses.replace(SIZES, vocab_size=258, fill_token_id=256)
    coder = CalmAutoencoder(sizes).requires_grad_(False)
    start(coder.named_parameters(), seed=1)
    own = fields(vocab_size=258, autoencoder=sizes.fields())
    made = make_calm(own, coder, seed=2)
    torch.nn.init.normal_(made.head.out.weight, generator=torch.Generator().manual_seed(3))
    save_plain(tmp_path / "calm", made, own, tokenizer)

    loaded = load(tmp_path / "calm", dtype="float32", device="cpu")
    assert loaded.abilities.end_tokens == {0, 256}  # the tokenizer's and config.json's
    assert (loaded.abilities.patch_size, loaded.abilities.fill_token) == (3, 256)
    assert loaded.abilities.context_length == 96 and loaded.abilities.kind == "calm"
    engine = Engine(tmp_path / "calm", cache_tokens=512)
    free = engine.generate("a text to go on from", method="calm", max_new_tokens=30)
    assert free.text and len(free.tokens) > 3
    stop = free.text[3:5]
    stopped = engine.generate("a text to go on from", method="calm", max_new_tokens=30, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"

"""Masked diffusion against enumeration, fixed tokens, windows, early end, what is refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from tests.methods.enumerated import (
    LENGTH,
    MASK,
    START,
    chi_square,
    enumerated_model,
    joint,
)
from tests.tiny import END, VOCABULARY, assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.core.errors import ContextOverflow, InvalidRequest, PoolTooSmall, UnsupportedMethod
from anyorder.core.request import Completion, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel

MASKS = VOCABULARY - 1


def diffusion_model(*, ends: bool = False, **abilities: Any) -> LoadedModel:
    """The tiny random model as a network for canvases."""
    model = tiny_model(ends=ends)
    changes = {"mask_token": MASKS, "attention": frozenset({"causal", "bidirectional"})}
    return dataclasses.replace(
        model, abilities=dataclasses.replace(model.abilities, **{**changes, **abilities})
    )


def request(options: dict[str, object] | None = None, **fields: Any) -> Request:
    base = {"prompt": [5, 6, 7], "method": "masked_diffusion", "options": options or {}}
    return Request(**{**base, **fields})


def generate(options: dict[str, object] | None = None, **fields: Any) -> Completion:
    engine = tiny_engine(model=fields.pop("model", None) or diffusion_model())
    completion = engine.generate(request(options, **fields))
    assert_no_page_is_lost(engine)
    return completion


def two_way_logprobs(tokens: Seq[int]) -> torch.Tensor:
    """What the tiny model says at each place, by one dense pass."""
    network: Any = tiny_model().network
    positions = torch.arange(len(tokens))
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=len(tokens),
        pages_RP=None,
        query_positions_RQ=positions[None],
        key_positions_RK=positions[None],
        visible_RQK=torch.ones(1, len(tokens), len(tokens), dtype=torch.bool),
    )
    batch = PackedBatch(
        tokens_N=torch.tensor(tokens), positions_N=positions, slots_N=None, groups=(group,)
    )
    logits: torch.Tensor = network.logits(network.hidden(batch, None))
    logits[:, MASKS] = -torch.inf
    return logits.log_softmax(-1)


# ------------------------------------------------------------------------------ against enumeration
@functools.cache
def inconsistent(canvas: tuple[int, ...], num_passes: int = 0) -> torch.Tensor:
    """Predictions that belong to no joint distribution: order matters."""
    if num_passes:
        return inconsistent(canvas)
    generator = torch.Generator().manual_seed(int("1" + "".join(map(str, canvas))))
    return (torch.randn(LENGTH, 3, generator=generator) * 1.2).log_softmax(-1)


def order_averaged() -> torch.Tensor:
    """The mean over all orders of the chain rule in that order."""
    total = torch.zeros((3,) * LENGTH, dtype=torch.float64)
    orders = list(itertools.permutations(range(LENGTH)))
    for text in itertools.product(range(3), repeat=LENGTH):
        for order in orders:
            canvas, logprob = [MASK] * LENGTH, 0.0
            for place in order:
                logprob += float(inconsistent(tuple(canvas))[place, text[place]])
                canvas[place] = text[place]
            total[text] += torch.tensor(logprob, dtype=torch.float64).exp() / len(orders)
    return total


def sampled(options: dict[str, object], seeds: range, **fields: Any) -> list[list[int]]:
    engine = Engine(enumerated_model(inconsistent), cache_tokens=4096)
    requests = [
        request(options, prompt=[START], temperature=1.0, max_new_tokens=LENGTH, seed=s, **fields)
        for s in seeds
    ]
    return [completion.tokens for completion in engine.generate(requests)]


def test_one_random_place_a_step_is_exact() -> None:
    texts = sampled({"commit": "random"}, range(900))
    want = order_averaged()
    assert chi_square(texts, want) < 4
    # Were the order left to right, this test would see it.
    assert chi_square(sampled({"commit": "sequential"}, range(900)), want) > 8


def test_ancestral_is_exact_as_steps_grow() -> None:
    want = order_averaged()
    many: dict[str, object] = {"commit": "ancestral", "steps": 64}
    assert chi_square(sampled(many, range(900)), want) < 4
    assert chi_square(sampled({"commit": "ancestral", "steps": 1}, range(900)), want) > 8


def test_steps_without_news_cost_no_pass() -> None:
    completion = generate({"commit": "ancestral", "steps": 1000}, max_new_tokens=6)
    assert completion.report.num_forward_passes <= 6


@pytest.mark.parametrize(
    ("revise", "steps"),
    [
        ({"name": "cap", "probability": 0.05}, 50),
        ({"name": "rescale", "share": 0.1}, 50),
        ({"name": "loop", "probability": 0.05, "level": 0.3}, 80),
        ({"name": "doubt"}, 50),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_remasking_keeps_a_joint_distribution(revise: dict[str, object], steps: int) -> None:
    """Taking back at random and drawing anew leaves a consistent distribution as it is; taking back
    what was unlikely does not."""
    text = joint(3)

    @functools.cache
    def predict(canvas: tuple[int, ...], num_passes: int = 0) -> torch.Tensor:
        if num_passes:
            return predict(canvas)
        rows = []
        for place in range(LENGTH):
            kept = text
            for other in reversed(range(LENGTH)):
                if other == place:
                    continue
                kept = (
                    kept.sum(other) if canvas[other] == MASK else kept.select(other, canvas[other])
                )
            rows.append((kept / kept.sum()).log().float())
        return torch.stack(rows)

    engine = Engine(enumerated_model(predict), cache_tokens=4096)
    options: dict[str, object] = {"commit": "ancestral", "steps": steps, "revise": revise}
    requests = [
        request(
            options, prompt=[START], temperature=1.0, max_new_tokens=LENGTH, seed=s, history=True
        )
        for s in range(300)
    ]
    completions = engine.generate(requests)
    taken_back = [
        any(p.token is None for p in completion.choices[0].history) for completion in completions
    ]
    assert sum(taken_back) / len(taken_back) > 0.05
    distance = chi_square([completion.tokens for completion in completions], text)
    assert (distance < 4) or revise["name"] == "doubt"


# ----------------------------------------------------------------------------------- by other means
def test_greedy_confidence_is_the_loop_by_hand() -> None:
    for num_places, steps in ((7, 3), (8, 8), (5, 9)):
        completion = generate({"steps": steps}, max_new_tokens=num_places)
        text: list[int | None] = [None] * num_places
        want_steps = [0] * num_places
        # LLaDA's schedule: n // S a step, and one more in the first n % S steps.
        counts = [num_places // steps + (k < num_places % steps) for k in range(steps)]
        for number, count in enumerate([c for c in counts if c], 1):
            line = [5, 6, 7, *(MASKS if token is None else token for token in text)]
            found = two_way_logprobs(line)[3:].max(-1)
            open_places = [place for place in range(num_places) if text[place] is None]
            best = sorted(open_places, key=lambda place: -float(found.values[place]))
            for place in best[:count]:
                text[place], want_steps[place] = int(found.indices[place]), number
        assert completion.tokens == text
        assert [entry.step for entry in completion.trace] == want_steps
        assert completion.report.num_forward_passes == min(steps, num_places)


def test_shifted_networks_tell_a_place_by_the_token_before() -> None:
    model = diffusion_model(token_shift=True)
    completion = generate({"commit": "sequential"}, max_new_tokens=5, model=model)
    text: list[int] = []
    for place in range(5):
        line = [5, 6, 7, *text, *[MASKS] * (5 - place)]
        text.append(int(two_way_logprobs(line)[2 + place].argmax()))
    assert completion.tokens == text
    assert completion.tokens != generate({"commit": "sequential"}, max_new_tokens=5).tokens


def test_fills_around_fixed_tokens() -> None:
    canvas = [9, None, 11, None, None, 12]
    completion = generate({"commit": "sequential"}, canvas=canvas)
    text: list[int | None] = list(canvas)
    for place in (1, 3, 4):
        line = [5, 6, 7, *(MASKS if token is None else token for token in text)]
        text[place] = int(two_way_logprobs(line)[3 + place].argmax())
    assert completion.tokens == text and completion.report.num_new_tokens == 6
    for revise in ("cap", "lowest", "edit"):
        again = generate({"revise": revise, "steps": 8}, canvas=canvas, temperature=1.0)
        kept = [old for old, new in zip(canvas, again.tokens, strict=True) if old == new]
        assert kept == [9, 11, 12] and MASKS not in again.tokens


def test_nothing_before_a_canvas_is_no_prompt() -> None:
    text: list[int | None] = [None, 9, None, None]
    found = generate({"commit": "sequential"}, prompt=[], canvas=text)
    for place in (0, 2, 3):
        line = [MASKS if token is None else token for token in text]
        text[place] = int(two_way_logprobs(line)[place].argmax())
    assert found.tokens == text and found.report.num_prompt_tokens == 0
    with pytest.raises(InvalidRequest, match="the prompt is empty; give at least one token"):
        generate(prompt=[], canvas=[*text[:1], None], model=diffusion_model(token_shift=True))
    with pytest.raises(InvalidRequest, match="steers towards the prompt, and the prompt is empty"):
        generate(prompt=[], max_new_tokens=3, guidance_scale=2.0, negative_prompt=[3])


@pytest.mark.parametrize(
    "method", ["gibbs", "mask_predict", "semi_autoregressive", "uniform_diffusion"]
)
def test_other_methods_need_no_prompt_either(method: str) -> None:
    canvas = [None, 9, None, None, 4, None]
    wanted = request(prompt=[], method=method, canvas=canvas, temperature=1.0, seed=3)
    engine = tiny_engine(model=diffusion_model())
    found, again = engine.generate([wanted, dataclasses.replace(wanted, n=2)])
    assert found.tokens == again.tokens and len(again.choices) == 2
    pairs = zip(canvas, found.tokens, strict=True)
    assert all(old in (None, new) for old, new in pairs) and MASKS not in found.tokens
    assert_no_page_is_lost(engine)


def test_windows_are_filled_from_left_to_right() -> None:
    completion = generate({"window": 3, "steps": 2}, max_new_tokens=9)
    steps = [entry.step for entry in completion.trace]
    assert [sorted(steps[first : first + 3]) for first in (0, 3, 6)] == [
        [1, 1, 2],
        [3, 3, 4],
        [5, 5, 6],
    ]
    assert completion.tokens != generate({"steps": 6}, max_new_tokens=9).tokens


def test_what_lies_behind_an_end_token_is_not_filled() -> None:
    model = diffusion_model(ends=True)
    bias = {"max_new_tokens": 12, "model": model, "logit_bias": {END: 60.0}}
    completion = generate(**bias)
    assert completion.tokens[-1] == END and completion.finish_reason == "stop"
    assert completion.report.num_forward_passes < 12
    # Each pass ends the text somewhere before the last end: 3.1 passes in the mean, not 6.5.
    engine = tiny_engine(model=model)
    found = [
        request({"commit": "random"}, seed=s, max_new_tokens=12, logit_bias={END: 60.0})
        for s in range(30)
    ]
    passes = [engine.generate(each).report.num_forward_passes for each in found]
    assert sum(passes) / len(passes) < 4.5
    # With fixed tokens behind, it has to wait.
    completion = generate(canvas=[None] * 5 + [7] + [None] * 4, model=model, logit_bias={END: 60.0})
    assert completion.tokens[5:] == [7, END]
    assert generate(**bias, ignore_end=True).tokens == [END] * 12


def without_ends_first(
    ends: frozenset[int], num_places: int, *, steps: int, window: int, level: float | None
) -> tuple[list[int], list[int]]:
    """LLaDA's loop where end tokens have a confidence of minus infinity, up to the end of the text:
    tokens, and the step of each. With a level, all others above it are taken."""
    text: list[int | None] = [None] * num_places
    when = [0] * num_places
    number = 0
    for first in range(0, num_places, window):
        for step in range(steps):
            over = [place for place in range(num_places) if text[place] in ends]
            stop = min([first + window, *over])
            open_places = [place for place in range(first, stop) if text[place] is None]
            if not open_places or (over and min(over) < first):
                break
            number += 1
            line = [5, 6, 7, *(MASKS if token is None else token for token in text)]
            found = two_way_logprobs(line)[3:].max(-1)
            values, tokens = found.values.tolist(), found.indices.tolist()
            order = sorted(open_places, key=lambda place: -values[place])
            order.sort(key=lambda place: tokens[place] in ends)  # minus infinity
            count = -(-len(open_places) // (steps - step))
            if level is not None:
                sure = [
                    place
                    for place in order
                    if tokens[place] not in ends and values[place] > math.log(level)
                ]
                count = max(count, len(sure))
            for place in order[:count]:
                text[place], when[place] = tokens[place], number
    length = next((n for n, token in enumerate(text, 1) if token in ends), num_places)
    return [token for token in text[:length] if token is not None], when[:length]


@pytest.mark.parametrize("level", [None, 0.06])
@pytest.mark.parametrize(("steps", "window"), [(12, 12), (5, 12), (3, 4), (1, 6)])
def test_end_tokens_are_placed_last(steps: int, window: int, level: float | None) -> None:
    options: dict[str, object] = {"steps": steps, "window": window}
    if level is not None:
        options["commit"] = {"name": "threshold", "level": level}
    plain = generate(options, max_new_tokens=12).tokens
    differs = 0
    for ends in (plain[1:3], plain[4:6], plain[:4], plain):
        fields: dict[str, Any] = {"max_new_tokens": 12, "stop_tokens": sorted(set(ends))}
        completion = generate({**options, "ends": "last"}, **fields)
        want = without_ends_first(frozenset(ends), 12, steps=steps, window=window, level=level)
        assert (completion.tokens, [entry.step for entry in completion.trace]) == want
        differs += completion.tokens != generate(options, **fields).tokens
    assert differs or steps == 1


def test_edits_replace_what_the_network_would_write_now() -> None:
    options: dict[str, object] = {"steps": 2, "revise": {"name": "edit", "level": 0.0}}
    completion = generate(options, max_new_tokens=6, history=True)
    seen: dict[int, int | None] = {}
    num_edits = 0
    for preview in completion.choices[0].history:
        assert preview.token is not None
        num_edits += preview.place in seen
        seen[preview.place] = preview.token
    assert num_edits and [seen[place] for place in range(6)] == completion.tokens
    assert completion.report.num_forward_passes <= 2 + 16
    # Nothing more changes, or the passes ran out.
    line = [5, 6, 7, *completion.tokens]
    now = two_way_logprobs(line)[3:].argmax(-1).tolist()
    assert now == completion.tokens or completion.report.num_forward_passes == 2 + 16


def test_bans_hold_although_neighbours_are_placed_together() -> None:
    for seed in range(8):
        completion = generate(
            {"steps": 2}, max_new_tokens=24, no_repeat_ngram=2, temperature=0.4, seed=seed
        )
        line = [5, 6, 7, *completion.tokens]
        pairs = list(itertools.pairwise(line))
        assert len(set(pairs)) == len(pairs)
    loose = generate({"steps": 2}, max_new_tokens=24, temperature=0.4)
    pairs = list(itertools.pairwise(loose.tokens))
    assert len(set(pairs)) < len(pairs)


def test_exactness_is_told() -> None:
    exact: list[dict[str, object]] = [{"commit": "random"}, {"commit": "sequential"}]
    other: list[dict[str, object]] = [
        {},
        {"commit": "random", "steps": 3},
        {"commit": "ancestral", "steps": 3},
        {"commit": "random", "steps": 3, "revise": "cap"},
        {"commit": "random", "ends": "last"},
    ]
    for options in exact + other:
        assert generate(options, max_new_tokens=3).report.exact == (options in exact)


def test_a_network_of_blocks_is_told_apart() -> None:
    completion = generate(max_new_tokens=3, model=diffusion_model(block_size=4))
    assert "trained on blocks of 4 tokens" in completion.report.notes[0]
    assert not generate(max_new_tokens=3).report.notes


@pytest.mark.parametrize(
    ("cache", "lengths"),
    [
        ("none", [(13, 0)]),
        ("prefix", [(13, 0), (10, 3), (13, 0), (5, 8)]),
        ("dual", [(13, 0), (5, 8), (13, 0), (5, 8)]),
    ],
)
def test_what_is_cached_does_not_run_again(cache: str, lengths: list[tuple[int, int]]) -> None:
    engine = tiny_engine(model=diffusion_model())
    options: dict[str, object] = {"cache": cache, "window": 5, "commit": "sequential"}
    handle = engine.submit(request(options, max_new_tokens=10))
    found = [(13, 0)]  # the first pass is admitted within its tick
    while not handle.done:
        found += [
            (len(job.request.tokens), job.request.start)
            for run in engine._scheduler.running
            for job in run.jobs
        ]
        engine.tick()
    runs = [length for length, _ in itertools.groupby(found)]
    assert runs == lengths
    exact = handle.result().report.exact
    assert exact == (cache == "none")


# ------------------------------------------------------------------------------ what is refused
def test_bad_input() -> None:
    engine = tiny_engine(model=diffusion_model(), cache_tokens=64)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (InvalidRequest, "steps must be an integer of at least 1 or none, got 0", {"steps": 0}),
        (InvalidRequest, "windows of 4 places do not divide a canvas of 6; choose", {"window": 4}),
        (InvalidRequest, "ancestral needs a number of steps", {"commit": "ancestral"}),
        (InvalidRequest, "lowest needs a number of steps", {"revise": "lowest"}),
        (
            InvalidRequest,
            "level must be a number from 0",
            {"commit": {"name": "threshold", "level": 2}},
        ),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message) as caught:
            engine.generate(request(options, max_new_tokens=6))
        assert "\n" not in str(caught.value)
    with pytest.raises(PoolTooSmall, match="more than the cache of 64 positions"):
        engine.generate(request(canvas=[None] * 80))
    with pytest.raises(ContextOverflow, match="exceed tiny's context of 256"):
        engine.generate(request(max_new_tokens=500))
    with pytest.raises(InvalidRequest, match="the canvas has no place to fill in"):
        engine.generate(request(canvas=[3, 4]))
    with pytest.raises(InvalidRequest, match="windows of 4 places do not divide a canvas of 6"):
        engine.generate(request({"window": 4}, canvas=[None] * 6))
    with pytest.raises(InvalidRequest, match="guidance does not go with cache=dual; use"):
        engine.generate(request({"cache": "dual"}, guidance_scale=2.0))
    with pytest.raises(UnsupportedMethod, match=r"can: .*masked_diffusion"):
        engine.generate(request(method="autoregressive", canvas=[None, 4]))
    unable = diffusion_model(mask_token=None)
    with pytest.raises(UnsupportedMethod, match="needs a mask token; tiny has none"):
        tiny_engine(model=unable).generate(request())

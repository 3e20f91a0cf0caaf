"""Block diffusion: cached blocks equal no cache, blocks of one token are autoregressive."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from tests.tiny import END, VOCABULARY, assert_no_page_is_lost, run_out, tiny_engine, tiny_model

from anyorder.core.attention import Blocks
from anyorder.core.batch import AttentionGroup, PackedBatch
from anyorder.core.errors import InvalidRequest, PoolTooSmall, UnsupportedMethod
from anyorder.core.method import AttentionKind
from anyorder.core.request import Completion, Request
from anyorder.model.loaded import LoadedModel

MASKS = VOCABULARY - 1


def block_model(*, ends: bool = False, **abilities: Any) -> LoadedModel:
    """The tiny random model as a network of blocks of 4."""
    model = tiny_model(ends=ends)
    changes = {
        "mask_token": MASKS,
        "attention": frozenset({"causal", "bidirectional"}),
        "block_size": 4,
    }
    return dataclasses.replace(
        model, abilities=dataclasses.replace(model.abilities, **{**changes, **abilities})
    )


def request(options: dict[str, object] | None = None, **fields: Any) -> Request:
    base = {"prompt": [5, 6, 7], "method": "block_diffusion", "options": options or {}}
    return Request(**{**base, **fields})


def generate(options: dict[str, object] | None = None, **fields: Any) -> Completion:
    engine = tiny_engine(model=fields.pop("model", None) or block_model())
    completion = engine.generate(request(options, **fields))
    assert_no_page_is_lost(engine)
    return completion


def logprobs(tokens: Seq[int], size: int) -> torch.Tensor:
    """What the tiny model says at each place, by one dense pass over everything in blocks."""
    return dense(tokens, range(len(tokens)), Blocks(size=size).visible(len(tokens)))


def dense(tokens: Seq[int], places: Seq[int], visible: torch.Tensor) -> torch.Tensor:
    """The same of tokens at any places that see each other in any way [N, N]."""
    network: Any = tiny_model().network
    positions = torch.tensor([*places])
    group = AttentionGroup(
        first_row=0,
        num_requests=1,
        num_queries=len(tokens),
        pages_RP=None,
        query_positions_RQ=positions[None],
        key_positions_RK=positions[None],
        visible_RQK=visible[None],
    )
    batch = PackedBatch(
        tokens_N=torch.tensor(tokens), positions_N=positions, slots_N=None, groups=(group,)
    )
    logits: torch.Tensor = network.logits(network.hidden(batch, None))
    logits[:, MASKS] = -torch.inf
    return logits.log_softmax(-1)


def by_hand(
    prompt: list[int], num_new: int, size: int, shift: bool, causal: bool = False
) -> tuple[list[int], list[float]]:
    """Greedy, the likeliest place of the block first, by a dense pass a token."""
    text: list[int | None] = [None] * num_new
    found = [0.0] * num_new
    while None in text:
        start = (len(prompt) + text.index(None)) // size * size
        line = [*prompt, *(MASKS if token is None else token for token in text)]
        line = (line + [MASKS] * size)[: start + size]
        visible = Blocks(size=size).visible(len(line))
        if causal:
            visible = torch.ones(len(line), len(line), dtype=torch.bool).tril()
            visible[start:, start:] = True
        says = dense(line, range(len(line)), visible)
        best, answer = -1, (-1e9, 0)
        for place in range(num_new):
            position = len(prompt) + place
            if text[place] is not None or not start <= position < start + size:
                continue
            row = says[position - shift]
            value = (float(row.max()), int(row.argmax()))
            if value[0] > answer[0]:
                best, answer = place, value
        found[best], text[best] = answer
    return [token for token in text if token is not None], found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("num_prompt", "num_new"), [(3, 10), (1, 4), (8, 9), (4, 3), (21, 6), (0, 9)]
)
def test_cached_blocks_equal_no_cache(
    causal: bool, shift: bool, num_prompt: int, num_new: int
) -> None:
    num_prompt = num_prompt or shift  # to tell the first place by what is before it
    prompt = list(range(3, 3 + num_prompt))
    model = block_model(token_shift=shift, clean_text="causal" if causal else "bidirectional")
    options: dict[str, object] = {"commit": "confidence"}
    completion = generate(options, prompt=prompt, max_new_tokens=num_new, model=model)
    tokens, want = by_hand(prompt, num_new, 4, shift, causal)
    assert completion.tokens == tokens
    assert completion.logprobs == pytest.approx(want, abs=1e-5)
    # The pass that stores a block tells the next one's places: no pass beside one a token, but one
    # over a prompt that is read as other methods read it. With a shift, a block's first place needs
    # none of its own, since the first pass has told it.
    num_passes = num_new + (causal and num_prompt >= 4)
    assert completion.report.num_forward_passes <= num_passes
    assert shift or completion.report.num_forward_passes == num_passes


def test_text_that_is_read_from_left_to_right_shares_its_pages_with_other_methods() -> None:
    engine = tiny_engine(model=block_model(clean_text="causal"))
    prompt = [3 + place % 40 for place in range(70)]
    alone = generate(prompt=prompt, model=block_model(clean_text="causal"))
    fields = {"prompt": prompt, "max_new_tokens": 9}
    for method in ("autoregressive", "block_diffusion", "speculative"):
        drafter = {"drafter": "own_block"} if method == "speculative" else {}
        found = engine.generate(Request(method=method, options=drafter, **fields))
        assert found.report.num_cached_tokens == (0 if method == "autoregressive" else 64)
        if method == "block_diffusion":
            assert found.tokens == alone.tokens[:9]
    assert_no_page_is_lost(engine)


def test_only_the_block_runs_once_the_past_is_clean() -> None:
    engine = tiny_engine(model=block_model())
    handle = engine.submit(request({"commit": "sequential"}, prompt=[9] * 21, max_new_tokens=11))
    lengths = []
    while not handle.done:
        lengths += [
            (len(job.request.tokens), job.request.start)
            for run in engine._scheduler.running
            for job in run.jobs
        ]
        engine.tick()
    # The first pass, over prompt and first block, is admitted within its tick.
    assert list(dict.fromkeys(lengths)) == [(4, 20), (8, 20), (4, 24), (8, 24), (4, 28)]
    assert handle.result().report.num_forward_passes == 11


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_prompt", [1, 7])
def test_blocks_of_one_token_are_autoregressive(temperature: float, num_prompt: int) -> None:
    """With a token shift, token for token, draws included: the row that tells a place is that of
    the token before it, which sees what is before it. Only the mask token is never drawn."""
    model = block_model(token_shift=True, ends=True)
    engine = tiny_engine(model=model)
    for seed in range(4):
        fields: dict[str, Any] = {
            "prompt": list(range(5, 5 + num_prompt)),
            "temperature": temperature,
            "seed": seed,
            "max_new_tokens": 17,
            "repetition_penalty": 1.3,
            "no_repeat_ngram": 2,
            "min_new_tokens": 3,
            "logit_bias": {MASKS: -1e9},
        }
        got = engine.generate(request({"block_size": 1}, **fields))
        want = engine.generate(Request(**fields))
        assert got.tokens == want.tokens and got.finish_reason == want.finish_reason
        # The model's distribution differs by the mask token's share.
        gaps = [g - w for g, w in zip(got.logprobs, want.logprobs, strict=True)]
        assert all(-1e-6 < gap < 0.2 for gap in gaps)


def test_without_a_shift_blocks_of_one_token_ask_the_mask() -> None:
    completion = generate({"block_size": 1}, max_new_tokens=5)
    text = [5, 6, 7]
    for _ in range(5):
        text.append(int(logprobs([*text, MASKS], 1)[-1].argmax()))
    assert completion.tokens == text[3:]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("size", "num_cached"), [(4, 48), (5, 45), (7, 42), (32, 32), (64, 0)])
def test_the_prompts_whole_blocks_come_from_the_prefix_cache(
    size: int, num_cached: int, shift: bool
) -> None:
    """As many as fill pages of 16; what they say is what they would say if they were run."""
    prompt = [place * 7 % 50 + 2 for place in range(53)]
    model = block_model(token_shift=shift)
    engine = tiny_engine(model=model)
    for other in (prompt, [*prompt[:-1], 1], [*prompt[:47], 1, *prompt[48:]]):
        fields: dict[str, Any] = {"prompt": other, "max_new_tokens": 9, "temperature": 1.0}
        found = engine.generate(request({"block_size": size}, **fields))
        want = generate({"block_size": size}, model=model, **fields)
        assert found.tokens == want.tokens
        assert found.logprobs == pytest.approx(want.logprobs, abs=1e-9)
        shared = 0 if other is prompt else num_cached
        if other[47] == 1 and shared:  # token 47 is told apart: so is all of its block
            shared = 32 // size * size
        assert found.report.num_cached_tokens == shared
    fresh = Request(prompt=prompt, method="block_diffusion", options={"block_size": 3})
    assert engine.generate(fresh).report.num_cached_tokens == 0
    assert engine.generate(Request(prompt=prompt)).report.num_cached_tokens == 0
    together = engine.generate([request({"block_size": 4}, prompt=prompt, n=3)] * 2)
    assert [one.report.num_cached_tokens // 48 for one in together] == [2 + (size == 4), 3]
    assert_no_page_is_lost(engine)


def test_parallel_steps_within_a_block() -> None:
    completion = generate({"commit": "confidence", "steps": 2}, prompt=[5] * 4, max_new_tokens=8)
    steps = [entry.step for entry in completion.trace]
    assert [sorted(steps[:4]), sorted(steps[4:])] == [[1, 1, 2, 2], [3, 3, 4, 4]]
    eager = generate({"commit": {"name": "threshold", "level": 0.0}}, max_new_tokens=9)
    assert eager.report.num_forward_passes == 3


def in_flight_by_hand(
    prompt: list[int], text: list[int | None], most: int, open_at: float, level: float, shift: bool
) -> tuple[list[int], list[float], list[int]]:
    """Greedy, all likely places of all begun blocks of 4, by a dense pass a step: tokens, their
    log-probabilities and the step of each."""
    found, steps = [0.0] * len(text), [0] * len(text)
    blocks: list[list[int]] = []
    for place in range(len(text)):
        if not place or not (len(prompt) + place) % 4:
            blocks.append([])
        blocks[-1].append(place)
    begun = 0
    for step in itertools.count(1):
        unfinished = [block for block in blocks if any(text[place] is None for place in block)]
        if not unfinished:
            return [token for token in text if token is not None], found, steps
        first = blocks.index(unfinished[0])
        begun = max(begun, first + 1)
        while begun < min(first + most, len(blocks)):
            last = blocks[begun - 1]
            if sum(text[place] is not None for place in last) / len(last) < open_at:
                break
            begun += 1
        line = [*prompt, *(MASKS if token is None else token for token in text)]
        end = len(prompt) + blocks[begun - 1][-1] + 1
        line = [*line[:end], *[MASKS] * (-end % 4)]
        says = logprobs(line, 4)
        chosen: list[tuple[int, int, float]] = []
        for block in blocks[:begun]:
            asked = [place for place in block if text[place] is None]
            told = {place: says[len(prompt) + place - shift].max(0) for place in asked}
            likely = [place for place in asked if told[place].values.exp() >= level]
            if asked and not likely and block is unfinished[0]:
                likely = [max(asked, key=lambda place: float(told[place].values))]
            chosen += [(p, int(told[p].indices), float(told[p].values)) for p in likely]
        for place, token, logprob in chosen:
            text[place], found[place], steps[place] = token, logprob, step
    raise AssertionError


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("most", "open_at", "level"), [(2, 0.5, 0.1), (4, 0.1, 0.06), (3, 0, 0)])
def test_blocks_in_flight_equal_a_dense_pass_a_step(
    shift: bool, most: int, open_at: float, level: float
) -> None:
    options: dict[str, object] = {
        "in_flight": most,
        "open_at": open_at,
        "commit": {"name": "threshold", "level": level},
    }
    num_ahead = 0
    for prompt in ([5, 6, 7], [9] * 8, [1, 2, 3, 4, 5]):
        canvas: list[int | None] = [None] * 18
        canvas[6:8] = [3, 4]
        tokens, want, steps = in_flight_by_hand(prompt, list(canvas), most, open_at, level, shift)
        completion = generate(
            options, prompt=prompt, canvas=canvas, model=block_model(token_shift=shift)
        )
        assert completion.tokens == tokens and not completion.report.exact
        assert [entry.step for entry in completion.trace] == steps
        assert completion.logprobs == pytest.approx(want, abs=1e-5)
        assert completion.report.num_forward_passes == max(steps)
        edges = [place for place in range(1, 18) if not (len(prompt) + place) % 4]
        num_ahead += sum(min(steps[edge:]) <= max(steps[:edge]) for edge in edges)
    assert num_ahead > 3


def test_one_block_in_flight_is_block_diffusion() -> None:
    for options in ({}, {"commit": "random"}, {"steps": 2, "revise": "lowest", "window": 2}):
        fields: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 13, "seed": 3}
        plain = generate(options, **fields)  # type: ignore[arg-type]
        one = generate({**options, "in_flight": 1, "open_at": 0.0}, **fields)
        assert one.choices == plain.choices
        assert one.report.num_forward_passes == plain.report.num_forward_passes
    assert generate({"commit": "random"}, max_new_tokens=3).report.exact
    ahead = generate({"commit": "random", "in_flight": 2}, max_new_tokens=3)
    assert not ahead.report.exact and "shows blocks unfinished ones" in ahead.report.notes[0]


def test_what_is_only_due_waits_for_the_blocks_before() -> None:
    """Policies that take what a schedule wants take nothing ahead, and lose no step by it."""
    for commit, steps in (("confidence", None), ("confidence", 2), ("ancestral", 3)):
        options: dict[str, object] = {"commit": commit, "steps": steps}
        fields: dict[str, Any] = {"prompt": [5] * 4, "max_new_tokens": 12}
        plain = generate(options, **fields)
        ahead = generate({**options, "in_flight": 3, "open_at": 0.0}, **fields)
        found = [entry.step for entry in ahead.trace]
        assert max(found[:4]) < min(found[4:8]) and max(found[4:8]) < min(found[8:])
        if commit == "confidence":
            assert ahead.tokens == plain.tokens
            assert ahead.report.num_forward_passes == plain.report.num_forward_passes


def test_an_end_that_is_placed_ahead_ends_the_text() -> None:
    """What is open before it is filled, and no block behind it is begun."""
    options: dict[str, object] = {
        "in_flight": 8,
        "open_at": 0.25,
        "commit": {"name": "threshold", "level": 0.06},
    }
    fields: dict[str, Any] = {"max_new_tokens": 40, "model": block_model(ends=True)}
    num_cut = 0
    for seed in range(8):
        completion = generate(options, temperature=1.0, seed=seed, logit_bias={END: 4.0}, **fields)
        assert completion.finish_reason == "stop" and completion.tokens.index(END) == (
            len(completion.tokens) - 1
        )
        steps = [entry.step for entry in completion.trace]
        num_cut += steps[-1] < max(steps)
        assert completion.report.num_forward_passes == max(steps)
    assert num_cut


def test_an_end_token_ends_the_text_inside_a_block() -> None:
    model = block_model(ends=True)
    completion = generate(max_new_tokens=40, model=model, logit_bias={END: 60.0}, prompt=[4] * 4)
    assert completion.finish_reason == "stop" and completion.tokens[-1] == END
    assert completion.report.num_forward_passes <= 4 and len(completion.tokens) <= 4


def test_fills_around_fixed_tokens() -> None:
    canvas = [None, 9, None, None, 1, 2, 3, 4, 5, None, 11, None]
    for options in ({}, {"commit": "random"}, {"revise": "edit", "steps": 2}):
        completion = generate(options, canvas=canvas, temperature=1.0)  # type: ignore[arg-type]
        pairs = zip(canvas, completion.tokens, strict=True)
        assert all(old in (None, new) for old, new in pairs) and MASKS not in completion.tokens


def test_revision_inside_a_block() -> None:
    options: dict[str, object] = {"steps": 6, "revise": {"name": "lowest", "count": 1}}
    completion = generate(options, max_new_tokens=9, temperature=1.0, history=True)
    history = completion.choices[0].history
    taken_back = [preview for preview in history if preview.token is None]
    assert len(taken_back) >= 6 and not completion.report.exact
    assert len(completion.tokens) == 9 and MASKS not in completion.tokens


@pytest.mark.parametrize("num_prompt", [1, 4, 6])
def test_windows_of_a_block_are_filled_from_left_to_right(num_prompt: int) -> None:
    """They lie on the block's own grid, whatever part of it the prompt takes."""
    model = block_model(block_size=8)
    prompt = list(range(3, 3 + num_prompt))
    fields: dict[str, Any] = {"prompt": prompt, "max_new_tokens": 15, "model": model}
    steps = [entry.step for entry in generate({"window": 3}, **fields).trace]
    windows = [(num_prompt + place) // 8 * 8 + (num_prompt + place) % 8 // 3 for place in range(15)]
    found: dict[int, list[int]] = {}
    for step, window in zip(steps, windows, strict=True):
        found.setdefault(window, []).append(step)
    assert all(max(a) < min(b) for a, b in itertools.pairwise(found.values()))
    assert generate({"window": 1, "commit": "confidence"}, **fields).tokens == (
        generate({"commit": "sequential"}, **fields).tokens
    )
    assert generate({"window": 8}, **fields).tokens == generate(**fields).tokens


@pytest.mark.parametrize("num_prompt", [3, 4, 8])
def test_a_blocks_first_token_from_the_clean_block_before(num_prompt: int) -> None:
    """It stands before the block's other places are asked, in the order of any other policy."""
    model = block_model(token_shift=True)
    prompt = list(range(3, 3 + num_prompt))
    fields: dict[str, Any] = {"prompt": prompt, "max_new_tokens": 11, "model": model}
    completion = generate({"first": "clean", "commit": "confidence"}, **fields)
    steps = [entry.step for entry in completion.trace]
    for start in range(-num_prompt % 4, 11, 4):
        assert steps[start] == min(steps[start : start + 4])
        line = [*prompt, *completion.tokens][: num_prompt + start]
        assert completion.tokens[start] == int(logprobs(line, 4)[-1].argmax())
    canvas = [None] * 4 + [9] + [None] * 5
    fixed = generate({"first": "clean"}, prompt=[5] * 4, canvas=canvas, model=model)
    assert fixed.tokens[4] == 9


def test_where_clean_tokens_are_asked_they_run_alone() -> None:
    """No masks run beside them: blocks of one token cost what autoregressive decoding does."""
    model = block_model(token_shift=True)
    for options, lengths in (
        ({"block_size": 1}, [(5, 0), (1, 5), (1, 6), (1, 7), (1, 8), (1, 9)]),
        ({"first": "clean", "commit": "sequential"}, [(8, 0), (4, 4), (4, 8)]),
    ):
        engine = tiny_engine(model=model)
        handle = engine.submit(request(options, prompt=[9] * 5, max_new_tokens=6))
        found = lengths[:1]  # admitted within its tick
        while not handle.done:
            found += [
                (len(job.request.tokens), job.request.start)
                for run in engine._scheduler.running
                for job in run.jobs
            ]
            engine.tick()
        assert list(dict.fromkeys(found)) == lengths


@pytest.mark.parametrize("clean_text", ["bidirectional", "causal"])
@pytest.mark.parametrize("max_batch_tokens", [1, 5, 64])
def test_clean_blocks_alone_in_chunks_and_after_preemption(
    max_batch_tokens: int, clean_text: AttentionKind
) -> None:
    model = block_model(token_shift=True, clean_text=clean_text)
    options: dict[str, object] = {"first": "clean", "window": 2}
    requests = [
        request(options, prompt=[5] * length, max_new_tokens=9, temperature=1.0, seed=length)
        for length in (3, 8, 17)
    ]
    alone = [tiny_engine(model=model).generate(one).tokens for one in requests]
    engine = tiny_engine(model=model, max_batch_tokens=max_batch_tokens)
    handles = [engine.submit(one) for one in requests]
    run_out(engine, (3, 9, 30))
    assert [handle.result().tokens for handle in handles] == alone
    assert_no_page_is_lost(engine)


def test_what_its_authors_decode_with_is_the_default_on_a_model() -> None:
    authors = {"block_diffusion": {"window": 2, "commit": {"name": "confidence"}}}
    model = block_model(decoding=authors)
    fields: dict[str, Any] = {"max_new_tokens": 9, "temperature": 1.0, "seed": 4}
    theirs = generate(model=model, **fields)
    assert theirs.tokens == generate({"window": 2, "commit": "confidence"}, **fields).tokens
    ours = generate({"window": None, "commit": "threshold"}, model=model, **fields)
    assert ours.tokens == generate(**fields).tokens != theirs.tokens


def test_other_blocks_than_the_networks_are_noted() -> None:
    assert not generate(max_new_tokens=2).report.notes
    (note,) = generate({"block_size": 2}, max_new_tokens=2).report.notes
    assert "trained on blocks of 4 tokens, not on blocks of 2" in note
    (note,) = generate(
        {"block_size": 2}, max_new_tokens=2, model=block_model(block_size=0)
    ).report.notes
    assert "trained without blocks" in note


def test_bad_input() -> None:
    with pytest.raises(
        UnsupportedMethod, match="needs block_size; tiny was not trained on blocks"
    ) as caught:
        generate(model=block_model(block_size=0))
    assert "block_diffusion" not in str(caught.value).partition("supports: ")[2]
    with pytest.raises(UnsupportedMethod, match="needs first=any; tiny tells a place by its mask"):
        generate({"first": "clean"})
    with pytest.raises(UnsupportedMethod, match="needs a mask token; tiny has none"):
        generate(model=block_model(mask_token=None))
    for given in ({"revise": "edit"}, {"first": "clean"}):
        with pytest.raises(
            InvalidRequest, match=r"in_flight=2 does not go with .* set in_flight=1"
        ):
            generate({"in_flight": 2, **given}, model=block_model(token_shift=True))
    with pytest.raises(InvalidRequest, match="in_flight=2 does not go with cache=prefix"):
        generate({"in_flight": 2, "cache": "prefix"})
    with pytest.raises(InvalidRequest, match="guidance does not go with cache=dual; use cache=pre"):
        generate({"cache": "dual"}, guidance_scale=2.0, negative_prompt=[3])
    for options in ({"block_size": 0}, {"steps": 0}, {"in_flight": 0}):
        with pytest.raises(InvalidRequest, match="must be an integer of at least 1"):
            generate(options)  # type: ignore[arg-type]
    engine = tiny_engine(model=block_model(), cache_tokens=64)
    with pytest.raises(PoolTooSmall, match=r"and 36 more that block_diffusion works on, .* of 64"):
        engine.generate(request(prompt=[1] * 3, max_new_tokens=61, options={"block_size": 100}))
    of_the_network = tiny_engine(model=block_model(block_size=100), cache_tokens=64)
    with pytest.raises(PoolTooSmall, match="and 36 more that block_diffusion works on"):
        of_the_network.generate(request(prompt=[1] * 3, max_new_tokens=61))


def test_the_last_block_ends_with_the_context() -> None:
    completion = generate({"block_size": 60}, prompt=[3] * 250, max_new_tokens=6)
    assert len(completion.tokens) == 6

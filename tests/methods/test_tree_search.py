"""Tree search finds what enumeration finds, and what a naive twin finds where it must choose."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.checkpoint import save_checkpoint
from tests.methods.same_text import ids
from tests.tiny import CONTEXT, assert_no_page_is_lost, tiny_config, tiny_engine, tiny_model

from anyorder.core.batch import dense_batch
from anyorder.core.errors import InvalidRequest
from anyorder.core.method import Abilities
from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer


@functools.cache
def small_model(seed: int, *, ends: bool = False) -> LoadedModel:
    """Five tokens, so that all texts can be looked at."""
    config = tiny_config(vocabulary_size=5)
    abilities = Abilities(
        name="tiny",
        vocabulary_size=5,
        context_length=CONTEXT,
        end_tokens=frozenset({0} if ends else ()),
    )
    network = Transformer.random(config, seed=seed, dtype=torch.float64)
    return LoadedModel(network=network, abilities=abilities, tokenizer=None)


def logprobs(model: LoadedModel, text: list[int]) -> list[float]:
    """Of every token after the text."""
    network: Any = model.network
    logits = network.logits(network.hidden(dense_batch(torch.tensor([text])))[-1:])
    found: list[float] = logits.double().log_softmax(-1)[0].tolist()
    return found


def search(model: LoadedModel, prompt: list[int], length: int, **options: int) -> Completion:
    request = Request(prompt=prompt, method="tree_search", options=options, max_new_tokens=length)
    engine = tiny_engine(model=model)
    completion = engine.generate(request)
    assert_no_page_is_lost(engine)
    return completion


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ends", [False, True])
def test_a_full_tree_finds_the_likeliest_text(seed: int, ends: bool) -> None:
    model, prompt = small_model(seed, ends=ends), [1, 2]
    scores: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(3):
        scores = {
            (*path, *token): score + gain
            for path, score in scores.items()
            for token, gain in (
                [((), 0.0)]
                if ends and 0 in path
                else [((i,), g) for i, g in enumerate(logprobs(model, [*prompt, *path]))]
            )
        }
    best = max(scores, key=lambda path: scores[path])
    completion = search(model, prompt, 3, width=25, branch=5, depth=3)
    assert tuple(completion.tokens) == best
    assert completion.choices[0].score == pytest.approx(scores[best], abs=1e-5)
    assert sum(completion.logprobs) == pytest.approx(scores[best], abs=1e-5)


def test_the_likeliest_text_is_not_always_the_greedy_one() -> None:
    """Else the test above would say little."""
    found = {
        seed: [search(small_model(seed), [1, 2], 3, width=w, branch=w).tokens for w in (1, 5)]
        for seed in range(4)
    }
    assert any(greedy != best for greedy, best in found.values())


@pytest.mark.parametrize("options", [(1, 1, 5), (1, 1, 1), (3, 4, 1)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"no_repeat_ngram": 2, "min_new_tokens": 9},
        {"presence_penalty": 0.7, "logit_bias": {7: 3.0}},
        {"guidance_scale": 1.7, "negative_prompt": [5, 6, 7]},
    ],
    ids=str,
)
def test_one_path_or_one_level_is_greedy(
    options: tuple[int, int, int], more: dict[str, Any]
) -> None:
    names = dict(zip(("width", "branch", "depth"), options, strict=True))
    engine = tiny_engine()
    for length in (1, 40):
        base: dict[str, Any] = {"prompt": ids(3, length), "max_new_tokens": 20, **more}
        want = engine.generate(Request(**base, logprobs=2))
        got = engine.generate(Request(**base, logprobs=2, method="tree_search", options=names))
        assert got.tokens == want.tokens and got.finish_reason == want.finish_reason
        # And streams: what is settled becomes final in the pass that settles it.
        assert [entry.step for entry in got.trace] == list(range(1, len(got.tokens) + 1))
        for entry, other in zip(got.trace, want.trace, strict=True):
            assert [i for i, _ in entry.alternatives] == [i for i, _ in other.alternatives]


def naive(
    model: LoadedModel, prompt: list[int], length: int, width: int, branch: int, depth: int
) -> tuple[list[int], int]:
    """Whole texts in a list, each scored by a dense pass; and the number of levels."""
    final: list[int] = []
    paths: list[tuple[list[int], float]] = [([], 0.0)]
    for num_levels in itertools.count(1):
        children = []
        for path, score in paths:
            if len(path) < length and (not path or path[-1] not in model.abilities.end_tokens):
                gains = logprobs(model, prompt + path)
                ranked = sorted(range(len(gains)), key=lambda i: -gains[i])[:branch]
                children += [([*path, i], score + gains[i]) for i in ranked]
            else:
                children.append((path, score))
        paths = sorted(children, key=lambda child: -child[1])[:width]
        best = paths[0][0]
        if len(best) == length or best[-1] in model.abilities.end_tokens:
            return best, num_levels
        if len(best) - len(final) == depth:
            final = best[: len(final) + 1]
        paths = [child for child in paths if child[0][: len(final)] == final]
        while all(len(p) > len(final) and p[len(final)] == best[len(final)] for p, _ in paths):
            final = best[: len(final) + 1]
            if len(final) == len(best):
                break
    raise AssertionError


@pytest.mark.parametrize("options", [(2, 2, 2), (3, 5, 4), (8, 3, 3), (4, 4, 5)])
@pytest.mark.parametrize("ends", [False, True])
def test_equals_a_naive_search(options: tuple[int, int, int], ends: bool) -> None:
    names = dict(zip(("width", "branch", "depth"), options, strict=True))
    for seed in range(3):
        model = small_model(seed, ends=ends)
        tokens, num_levels = naive(model, [2, 4, 1], 14, *options)
        completion = search(model, [2, 4, 1], 14, **names)
        assert completion.tokens == tokens
        assert completion.report.num_forward_passes == num_levels


def test_streams_while_it_searches() -> None:
    engine = tiny_engine(model=tiny_model(ends=False))
    request = Request(prompt=ids(1, 4), method="tree_search", max_new_tokens=20)
    events = [event for event in engine.stream(request) if event.tokens]
    assert len(events) > 5
    steps = [entry.step for entry in engine.generate(request).trace]
    assert steps[0] <= 5 and all(b - a <= 5 for a, b in itertools.pairwise(steps))


def test_lost_pages_are_computed_again_in_one_pass() -> None:
    """The text's own tokens ran in trees; they count as causal once the rest is gone."""
    engine = tiny_engine(model=tiny_model(ends=False))
    request = Request(prompt=ids(1, 4), method="tree_search", max_new_tokens=30)
    calm = engine.generate(request)
    handle = engine.submit(request)
    for _ in range(20):
        engine.tick()
    (run,) = engine._scheduler.running
    engine._scheduler._preempt(run)
    while engine.tick():
        pass
    completion = handle.result()
    assert completion.tokens == calm.tokens and completion.report.num_preemptions == 1
    assert completion.report.num_forward_passes <= calm.report.num_forward_passes + 1


def test_a_guide_holds_on_every_path(tmp_path: Path) -> None:
    engine = Engine(save_checkpoint(tmp_path / "checkpoint"), cache_tokens=4096)
    choices = ["yes", "no", "perhaps not"]
    for guide, allowed in (
        (Guide.choices(choices), choices),
        (
            Guide.regex("[ab]{3}"),
            ["".join(letters) for letters in itertools.product("ab", repeat=3)],
        ),
    ):
        request = Request(prompt="The", method="tree_search", guide=guide, max_new_tokens=30)
        assert engine.generate(request).text in allowed
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0.5), ("top_p", 0.9), ("top_k", 3), ("min_p", 0.1)]
)
def test_controls_of_draws_are_refused(name: str, value: Any) -> None:
    request = Request(prompt=[1], method="tree_search", **{name: value})
    with pytest.raises(InvalidRequest, match=f"tree_search .* draws nothing: leave {name} at"):
        tiny_engine().generate(request)


def test_several_texts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="n is 2, but tree_search finds one text"):
        tiny_engine().generate(Request(prompt=[1], method="tree_search", n=2))

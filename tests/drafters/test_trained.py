"""Trained drafters end to end: the text never changes, the trees are those of an enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import drafter_twins as twins
from tests.drafter_folders import (
    BLOCK,
    MASK,
    VOCABULARY,
    WIDTH,
    read,
    write_dflash,
    write_eagle,
    write_medusa,
    write_target,
)
from tests.engine.test_attention import submit
from tests.tiny import assert_no_page_is_lost, run_out

from anyorder.core.attention import Tree
from anyorder.core.drafter import Draft, Drafter
from anyorder.core.errors import InvalidRequest, PoolTooSmall, UnsupportedMethod, UserError
from anyorder.core.forward import (
    Decoding,
    forward,
)
from anyorder.core.method import Abilities, Context
from anyorder.core.request import Completion, Request
from anyorder.drafters.block_drafter import BlockDrafter
from anyorder.drafters.eagle import Eagle
from anyorder.drafters.medusa import Medusa
from anyorder.engine.engine import Engine
from anyorder.model.loaded import LoadedModel, load, load_draft

WRITERS: dict[str, Callable[[Path], Path]] = {
    "medusa": write_medusa,
    "eagle": write_eagle,
    "block_drafter": write_dflash,
}
SMALL = {"medusa": {"nodes": 7, "top": 3}, "eagle": {"nodes": 9, "top": 3}, "block_drafter": {}}


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCABULARY - 1) for _ in range(length)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and its drafters, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("models")
    write_target(folder / "target")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> LoadedModel:
    return load(folder / "target", dtype=torch.float64, device="cpu")


def engine_with(folder: Path, target: LoadedModel, name: str, **changes: Any) -> Engine:
    return Engine(target, draft=folder / name, **{"cache_tokens": 1024, **changes})


def requests_of(name: str) -> list[Request]:
    drafter = {"name": name, **SMALL[name]}
    options = {"drafter": drafter, "length": 3, "adaptive": False}
    drafted = [
        Request(
            prompt=ids(length, length),
            method="speculative",
            max_new_tokens=9,
            temperature=temperature,
            seed=7,
            options=options,
        )
        for length in (1, 20)
        for temperature in (0.0, 1.0)
    ]
    return [*drafted, dataclasses.replace(drafted[2], options={"drafter": drafter})]


def plain(request: Request) -> Request:
    return dataclasses.replace(request, method="autoregressive", options={})


@pytest.fixture(scope="module")
def expected(target: LoadedModel) -> list[Completion]:
    """What plain decoding writes; the same for all drafters, since their requests differ in
    options alone."""
    return Engine(target, cache_tokens=1024).generate([plain(r) for r in requests_of("medusa")])


def assert_same(completions: list[Completion], expected: list[Completion]) -> None:
    for completion, other in zip(completions, expected, strict=True):
        assert completion.tokens == other.tokens
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert completion.finish_reason == other.finish_reason


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("max_batch_tokens", [512, 7])
def test_the_text_is_that_of_plain_decoding(
    folder: Path, target: LoadedModel, expected: list[Completion], name: str, max_batch_tokens: int
) -> None:
    """Alone, then mixed with plain requests; in one piece and in chunks."""
    engine = engine_with(folder, target, name, max_batch_tokens=max_batch_tokens)
    requests = requests_of(name)
    alone = engine.generate(requests[-2])
    assert_same([alone], expected[-2:-1])
    assert alone.report.exact and (name == "medusa") != ("draft" in alone.report.passes_by_role)
    mixed = [one for request in requests for one in (request, plain(request))]
    assert_same(engine.generate(mixed)[::2], expected)
    assert_no_page_is_lost(engine)


@pytest.mark.parametrize("name", WRITERS)
def test_preempted_it_writes_the_same(
    folder: Path, target: LoadedModel, expected: list[Completion], name: str
) -> None:
    drafts = {}
    for every in (0, 3):
        engine = engine_with(folder, target, name)
        requests = requests_of(name)[:-1]
        handles = [engine.submit(request) for request in requests]
        run_out(engine, range(2, 1000, every) if every else ())
        completions = [handle.result() for handle in handles]
        assert_same(completions, expected[:-1])
        assert not every or sum(handle.num_preemptions for handle in handles) > len(handles)
        # A drafter that lost its past would still be corrected by the target; but it would draft
        # something else.
        drafts[every] = [completion.report.mean_accepted_length for completion in completions]
        assert_no_page_is_lost(engine)
    assert drafts[0] == drafts[3]


# ------------------------------------------------------------------------- drafts, by enumeration
def drafts_of(
    engine: Engine, drafter: Drafter, texts: list[list[int]], limit: int, preempt: bool = False
) -> list[Draft]:
    """What is drafted after each text, in one session; each begins with the one before it."""
    found: list[Draft] = []

    def script(context: Context) -> Decoding:
        wants = drafter.wants(context.models)
        start = 0
        with context.sequence() as sequence:
            session = drafter.open(context, sequence=sequence, coupled=True)
            for text in texts:
                result = yield from forward(sequence, text[start:-1], start, outputs=wants)
                start = len(text) - 1
                heads = result.heads[0] if result.heads else ()
                session.observe(text, features=result.features, heads=heads)
                assert session.expects() == 0
                draft = yield from session.propose(text, limit)
                found.append(draft)
            session.close()
        context.emit([1], [0.0])

    handle = submit(engine, texts[0], script)
    for tick in itertools.count():
        if not engine.tick():
            break
        assert tick < 500, "no progress"
        if preempt and tick % 4 == 3:
            for run in list(engine._scheduler.running):
                engine._scheduler._preempt(run)
    handle.result()
    assert_no_page_is_lost(engine)
    return found


def paths(draft: Draft) -> dict[tuple[int, ...], None]:
    """Every node by the tokens from the root to it, in order."""
    parents = draft.parents if draft.parents is not None else range(-1, len(draft.tokens) - 1)
    Tree(parents=tuple(parents)).check(len(draft.tokens))
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    assert len(set(found)) == len(found), "a sibling twice"
    return dict.fromkeys(found)


TEXTS = [ids(5, 11), [*ids(5, 11), *ids(6, 1)], [*ids(5, 11), *ids(6, 4)]]


def by_chance(count: int, chances: dict[tuple[int, ...], float]) -> set[tuple[int, ...]]:
    """The likeliest paths."""
    return set(sorted(chances, key=lambda path: -chances[path])[:count])


@pytest.mark.parametrize(("max_batch_tokens", "preempt"), [(512, False), (512, True), (5, False)])
@pytest.mark.parametrize(("nodes", "top", "limit"), [(9, 3, 3), (40, 2, 4), (4, 3, 4), (1, 1, 1)])
def test_eagle_grows_the_tree_of_the_definition(
    folder: Path,
    target: LoadedModel,
    preempt: bool,
    max_batch_tokens: int,
    nodes: int,
    top: int,
    limit: int,
) -> None:
    engine = engine_with(folder, target, "eagle", max_batch_tokens=max_batch_tokens)
    drafts = drafts_of(engine, Eagle(nodes=nodes, top=top), TEXTS, limit, preempt)
    of_target, of_eagle = read(folder / "target"), read(folder / "eagle")
    embedding = of_target["model.embed_tokens.weight"]
    for text, draft in zip(TEXTS, drafts, strict=True):
        stream, _ = twins.llama(of_target, text[:-1])
        features = torch.cat([stream[depth] for depth in (2, 3, 4)], dim=-1)
        # Level by level; every node is run as a chain of its own.
        chances: dict[tuple[int, ...], float] = {}
        beam: list[tuple[int, ...]] = [()]
        for _ in range(limit):
            level: dict[tuple[int, ...], float] = {}
            for path in beam:
                _, logits = twins.eagle(of_eagle, embedding, [*text[1:], *path], features)
                values, tokens = logits[-1].log_softmax(-1).topk(top)
                for value, token in zip(values.tolist(), tokens.tolist(), strict=True):
                    level[*path, token] = chances.get(path, 0.0) + value
            chances |= level
            beam = list(by_chance(top, level))
        assert set(paths(draft)) == by_chance(nodes, chances)
        siblings = [list(group) for _, group in itertools.groupby(sorted(
            paths(draft), key=lambda path: (path[:-1], list(paths(draft)).index(path))
        ), key=lambda path: path[:-1])]  # fmt: skip
        for group in siblings:
            assert [chances[path] for path in group] == sorted(
                (chances[path] for path in group), reverse=True
            ), "likelier siblings come first"
        assert len(draft.tokens) <= Eagle(nodes=nodes, top=top).num_tokens(limit)


@pytest.mark.parametrize(("nodes", "top", "limit"), [(9, 3, 3), (30, 4, 2), (256, 5, 8), (1, 1, 1)])
def test_medusa_takes_the_likeliest_paths(
    folder: Path, target: LoadedModel, nodes: int, top: int, limit: int
) -> None:
    engine = engine_with(folder, target, "medusa")
    drafts = drafts_of(engine, Medusa(nodes=nodes, top=top), TEXTS, limit)
    of_target, of_heads = read(folder / "target"), read(folder / "medusa")
    for text, draft in zip(TEXTS, drafts, strict=True):
        _, hidden = twins.llama(of_target, text[:-1])
        logprobs = twins.medusa(of_heads, 3, 2, hidden[-1:])[0].log_softmax(-1)
        best = [
            dict(zip(*(t.tolist() for t in head.topk(top)[::-1]), strict=True)) for head in logprobs
        ]
        chances = {
            path: sum(head[token] for head, token in zip(best, path, strict=False))
            for depth in range(1, min(limit, 3) + 1)
            for path in itertools.product(*best[:depth])
        }
        assert set(paths(draft)) == by_chance(nodes, chances)
        in_order = [chances[path] for path in paths(draft)]
        assert in_order == sorted(in_order, reverse=True), "likelier ones come first"
        assert len(draft.tokens) <= Medusa(nodes=nodes, top=top).num_tokens(limit)


@pytest.mark.parametrize("preempt", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_a_block_is_filled_in_by_one_pass(
    folder: Path, target: LoadedModel, limit: int, preempt: bool
) -> None:
    engine = engine_with(folder, target, "block_drafter")
    drafts = drafts_of(engine, BlockDrafter(), TEXTS, limit, preempt)
    of_target, of_drafter = read(folder / "target"), read(folder / "block_drafter")
    for text, draft in zip(TEXTS, drafts, strict=True):
        stream, _ = twins.llama(of_target, text[:-1])
        features = torch.cat([stream[depth] for depth in (2, 4, 6)], dim=-1)
        logits = twins.dflash(
            of_drafter,
            of_target["model.embed_tokens.weight"],
            of_target["lm_head.weight"],
            [text[-1], *[MASK] * (BLOCK - 1)],
            features,
        )
        guesses = logits[1:].argmax(-1).tolist()
        assert list(draft.tokens) == guesses[:limit] and draft.parents is None


def test_a_prompt_is_read_in_parts_before_the_first_block(
    folder: Path, target: LoadedModel
) -> None:
    """A block must run whole; the context before it need not, and shares passes that way."""
    engine = engine_with(folder, target, "block_drafter", max_batch_tokens=7)
    options = {"drafter": "block_drafter", "length": 3, "adaptive": False}
    request = Request(
        prompt=ids(20, 20),
        method="speculative",
        max_new_tokens=3,
        ignore_end=True,
        options=options,
    )
    passes = engine.generate(request).report.passes_by_role["draft"]
    assert passes == 3 + 1, "20 tokens of context by 7, and one block for the second token"


def test_nothing_of_a_block_is_replayed(folder: Path, target: LoadedModel) -> None:
    """Context that was cached beside a block counts as run causally, so a replay needs no span."""
    engine = engine_with(folder, target, "block_drafter")
    spans: list[int] = []

    def script(context: Context) -> Decoding:
        drafter = BlockDrafter()
        wants = drafter.wants(context.models)
        with context.sequence() as sequence:
            session: Any = drafter.open(context, sequence=sequence, coupled=True)
            start = 0
            for text in TEXTS:
                result = yield from forward(sequence, text[start:-1], start, outputs=wants)
                start = len(text) - 1
                session.observe(text, features=result.features, heads=())
                yield from session.propose(text, 2)
                spans.append(len(session._sequence.spans))
            session.close()
        context.emit([1], [0.0])

    handle = submit(engine, TEXTS[0], script)
    while engine.tick():
        pass
    handle.result()
    assert spans == [1, 1, 1], "the block of the moment"


# ----------------------------------------------------------------------------- a drafter that helps
def test_heads_that_know_the_future_save_passes(tmp_path: Path, folder: Path) -> None:
    """A target whose next token depends on the last one alone, and heads made to know it."""
    target_folder = write_target(tmp_path / "target")
    weights = read(target_folder)
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name].zero_()
    safetensors.torch.save_file(weights, target_folder / "model.safetensors")
    _, hidden = twins.llama(weights, list(range(VOCABULARY)))
    following = (hidden @ weights["lm_head.weight"].T).argmax(-1)
    reached = following[following[following]].unique()[: WIDTH - 2]
    future, heads = following, {}
    for head in range(3):
        future = following[future]
        # Rows that score the right tokens 1 and the others 0, for the tokens that are reached.
        wanted = torch.nn.functional.one_hot(future[reached], VOCABULARY).double()
        heads[f"{head}.0.weight"] = torch.linalg.lstsq(hidden[reached], wanted).solution.T
    heads_folder = write_medusa(tmp_path / "heads", num_heads=3, num_blocks=0)
    contiguous = {name: tensor.contiguous() for name, tensor in heads.items()}
    safetensors.torch.save_file(contiguous, heads_folder / "medusa_lm_head.safetensors")
    engine = Engine(
        target_folder, draft=heads_folder, dtype=torch.float64, device="cpu", cache_tokens=1024
    )
    options = {"drafter": {"name": "medusa", "top": 1}, "length": 3, "adaptive": False}
    request = Request(
        prompt=[int(reached[0])],
        method="speculative",
        max_new_tokens=21,
        ignore_end=True,
        options=options,
    )
    completion = engine.generate(request)
    assert completion.tokens == engine.generate(plain(request)).tokens
    assert completion.report.mean_accepted_length == 4.0
    assert completion.report.num_forward_passes == 1 + 20 / 4


# ----------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "loaded", "message"),
    [
        ("medusa", "eagle", "further prediction heads .Medusa.; target has none"),
        ("eagle", "medusa", "an EAGLE-3 drafter as draft model; the engine has target"),
        ("eagle", "block_drafter", "an EAGLE-3 drafter .*; block_drafter is of another kind"),
        ("block_drafter", "medusa", "a DFlash drafter as draft model; the engine has target"),
        ("block_drafter", "eagle", "a DFlash drafter .*; eagle is of another kind"),
        ("draft_model", "eagle", "a draft model that runs by itself"),
    ],
)
def test_an_engine_without_the_drafter_is_refused(
    folder: Path, target: LoadedModel, name: str, loaded: str, message: str
) -> None:
    engine = engine_with(folder, target, loaded)
    request = Request(prompt=[1], method="speculative", options={"drafter": name})
    with pytest.raises(UnsupportedMethod, match=message):
        engine.generate(request)


@pytest.mark.parametrize("name", ["eagle", "block_drafter"])
def test_a_drafter_is_no_model_to_contrast_with(
    folder: Path, target: LoadedModel, name: str
) -> None:
    engine = engine_with(folder, target, name)
    request = Request(prompt=[1], guidance_scale=2.0, contrast_role="draft")
    with pytest.raises(InvalidRequest, match=r"'draft' is the .* drafter .* cannot run by itself"):
        engine.generate(request)


def test_a_loaded_drafter_may_be_given(folder: Path, target: LoadedModel) -> None:
    loaded = load_draft(folder / "eagle", target)["draft"]
    engine = Engine(target, draft=loaded, cache_tokens=256)
    request = requests_of("eagle")[0]
    assert engine.generate(request).tokens == engine.generate(plain(request)).tokens


def test_a_drafter_for_another_vocabulary_is_refused(folder: Path, target: LoadedModel) -> None:
    loaded = load_draft(folder / "eagle", target)["draft"]
    abilities = dataclasses.replace(loaded.abilities, vocabulary_size=9)
    with pytest.raises(UserError, match=r"eagle has 9 tokens and .* target has 61"):
        Engine(target, draft=dataclasses.replace(loaded, abilities=abilities))


def test_a_tree_that_outgrows_the_pool_is_refused(folder: Path, target: LoadedModel) -> None:
    """The drafter runs all paths it follows, more than it proposes in the end."""
    engine = engine_with(folder, target, "eagle", cache_tokens=128)
    drafter = {"name": "eagle", "nodes": 5, "top": 10}
    options = {"drafter": drafter, "length": 12, "adaptive": False}
    request = Request(prompt=ids(0, 10), method="speculative", max_new_tokens=6, options=options)
    assert len(engine.generate(request).tokens) == 6
    deeper = dataclasses.replace(request, options=options | {"length": 13})
    with pytest.raises(PoolTooSmall, match=r"and 120 more that .* 128 positions"):
        engine.submit(deeper)


def test_a_block_that_outgrows_the_drafter_s_pool_is_refused(
    folder: Path, target: LoadedModel
) -> None:
    """A block is run whole, however few of its tokens are wanted."""
    engine = engine_with(folder, target, "block_drafter", cache_tokens=32)
    size = engine.roles["draft"].abilities.block_size
    options = {"drafter": "block_drafter", "length": 1}
    request = Request(
        prompt=ids(0, 24 - size),
        method="speculative",
        max_new_tokens=8,
        options=options,
        ignore_end=True,
    )
    assert len(engine.generate(request).tokens) == 8
    longer = dataclasses.replace(request, prompt=ids(0, 25 - size))
    with pytest.raises(PoolTooSmall, match="33 positions of the draft model's cache"):
        engine.submit(longer)


@pytest.mark.parametrize("name", ["eagle", "block_drafter"])
def test_beyond_its_context_it_drafts_nothing(folder: Path, target: LoadedModel, name: str) -> None:
    loaded = load_draft(folder / name, target)["draft"]
    abilities: Abilities = dataclasses.replace(loaded.abilities, context_length=20)
    short = dataclasses.replace(loaded, abilities=abilities)
    engine = Engine(target, draft=short, cache_tokens=256)
    options = {"drafter": name, "length": 1, "adaptive": False}
    request = Request(
        prompt=ids(0, 10), method="speculative", max_new_tokens=16, ignore_end=True, options=options
    )
    completion = engine.generate(request)
    assert completion.tokens == engine.generate(plain(request)).tokens
    assert 1 < completion.report.passes_by_role["draft"] < 20
    assert completion.report.notes == (
        "the drafter's context of 20 is full: no drafts from there on.",
    )


def test_what_drafting_costs_is_measured(folder: Path, target: LoadedModel) -> None:
    asked: list[tuple[int, str]] = []

    class Timed:
        def __init__(self) -> None:
            draft = Abilities(name="d", vocabulary_size=2, context_length=9, block_size=6)
            self.models = {"draft": draft}

        def pass_seconds(self, num_tokens: int, role: str) -> float | None:
            asked.append((num_tokens, role))
            return None if num_tokens == 2 else num_tokens / 10

    context: Any = Timed()
    assert math.isclose(BlockDrafter().seconds(context, 3), 0.6)
    assert math.isclose(Eagle(top=5).seconds(context, 3), 0.5 + 1.0)
    assert asked == [(6, "draft"), (2, "draft"), (5, "draft"), (10, "draft")]

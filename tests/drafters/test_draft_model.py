"""A draft model: what it proposes, what it costs, and when it stops."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tests.cli.checkpoint import save_checkpoint
from tests.methods.same_text import ids
from tests.tiny import assert_no_page_is_lost, tiny_engine, tiny_model

from anyorder.core.request import Completion, Guide, Request
from anyorder.engine.engine import Engine
from anyorder.model.loaded import load


def speculate(engine: Engine, *, length: int = 4, **changes: Any) -> Completion:
    drafter = {"name": "draft_model", **changes.pop("drafter", {})}
    options = {"drafter": drafter, "adaptive": False, "length": length}
    options["acceptance"] = changes.pop("acceptance", "match")
    request = Request(
        **{"prompt": ids(3, 9), "max_new_tokens": 21, **changes},
        method="speculative",
        options=options,
    )
    return engine.generate(request)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_target_itself_is_always_right(temperature: float) -> None:
    """Also when sampling: token matching lets it draw with the target's random numbers."""
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, draft=model)
    report = speculate(engine, temperature=temperature, seed=4).report
    assert report.mean_accepted_length == 5
    # The prompt's pass makes one token and each of four checks five. The draft model reads the
    # prompt together with the first new token, and then runs one token a pass.
    assert report.passes_by_role == {"target": 1 + 4, "draft": 4 * 4}


def test_with_own_random_numbers_the_ratio_rule_accepts_more_than_matching() -> None:
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, draft=model)
    controls: Any = {"temperature": 1.0, "acceptance": "ratio"}
    lengths = [
        speculate(engine, seed=seed, **controls).report.mean_accepted_length for seed in range(4)
    ]
    assert lengths == [5, 5, 5, 5]  # equal distributions: the ratio is 1


def test_it_stops_after_a_token_it_doubts() -> None:
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, draft=model)
    report = speculate(engine, drafter={"confidence": 1.0}).report
    assert report.mean_accepted_length == 2 and report.passes_by_role["draft"] == 10


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("acceptance", ["match", "ratio"])
def test_trees_have_as_many_branches_as_asked(acceptance: str, temperature: float) -> None:
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, draft=tiny_model(1, ends=False))
    answer = speculate(
        engine,
        drafter={"branches": "3,2"},
        temperature=temperature,
        acceptance=acceptance,
        max_new_tokens=7,
    )
    sizes = []
    handle = engine.submit(
        Request(
            prompt=ids(3, 9),
            max_new_tokens=7,
            temperature=temperature,
            method="speculative",
            options={
                "drafter": {"name": "draft_model", "branches": "3,2"},
                "adaptive": False,
                "length": 4,
                "acceptance": acceptance,
            },
        )
    )
    while not handle.done:
        for run in engine._runs[handle]:
            sizes += [len(j.request.tokens) for j in run.jobs if j.request.outputs.accepted]
        engine.tick()
    assert handle.result().tokens == answer.tokens
    assert max(sizes) == 1 + 3 + 6 + 6 + 6
    assert_no_page_is_lost(engine)


def test_the_cache_of_a_tree_is_not_taken_for_text() -> None:
    """After a tree, tokens that happen to stand where the text goes on must be run again."""
    model = tiny_model(ends=False)
    engine = tiny_engine(model=model, draft=model)
    report = speculate(engine, drafter={"branches": "2,2"}, max_new_tokens=41).report
    assert report.mean_accepted_length == 5


def test_beyond_the_end_of_a_guide_it_proposes_nothing(tmp_path: Path) -> None:
    model = load(save_checkpoint(tmp_path / "checkpoint"))
    endless = dataclasses.replace(
        model, abilities=dataclasses.replace(model.abilities, end_tokens=frozenset())
    )
    engine = Engine(endless, draft=endless, cache_tokens=4096)
    for branches in ("", "2,2"):
        base: dict[str, Any] = {"prompt": "The capital", "guide": Guide.choices(["yes", "no"])}
        base["max_new_tokens"] = 24
        want = engine.generate(Request(**base))
        got = speculate(engine, drafter={"branches": branches}, length=8, **base)
        assert got.tokens == want.tokens and got.finish_reason == want.finish_reason
    assert_no_page_is_lost(engine)

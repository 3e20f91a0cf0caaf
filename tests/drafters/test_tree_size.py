"""Of a tree as many tokens are checked as pay, by the drafter's own chances and measured passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.drafter_folders import write_target
from tests.drafters.test_trained import WRITERS, ids

from anyorder.core.drafter import Draft
from anyorder.core.request import Request
from anyorder.engine.engine import Engine
from anyorder.engine.run import Run
from anyorder.methods import speculative
from anyorder.methods.speculative import _without
from anyorder.sampling.draft_length import DraftLength

LENGTHS = DraftLength(16, lambda grade: 0.75)


def worth(chances: list[float], seconds: Any, drafting: float = 0.0) -> list[int]:
    return LENGTHS.worth_checking(chances, check=seconds, drafting=drafting)


def test_as_many_as_make_most_tokens_per_second() -> None:
    """Against every number of them tried."""
    chances = [0.7, 0.1, 0.05, 0.5, 0.02, 0.3]
    for slope in (0.0, 0.05, 0.1, 0.2, 0.4, 1.0):
        for drafting in (0.0, 0.5):

            def seconds(count: int, slope: float = slope) -> float:
                return 1.0 + slope * count

            ranked = sorted(range(6), key=lambda place: -chances[place])
            rates = [
                (1 + sum(chances[place] for place in ranked[:n])) / (seconds(n) + drafting)
                for n in range(1, 7)
            ]
            best = rates.index(max(rates)) + 1
            assert worth(chances, seconds, drafting) == sorted(ranked[:best])


def test_without_costs_all_are_checked() -> None:
    assert worth([0.1, 0.9], lambda count: None) == [0, 1]


def test_a_length_is_priced_at_what_was_worth_checking_lately() -> None:
    """A tree that is always cut to a few tokens must not look as dear as a whole one."""
    lengths = DraftLength(4, lambda grade: 0.5)
    assert lengths.num_checked(16) == 16, "nothing is known yet"
    for _ in range(8):
        lengths.worth_checking([0.6] + [0.01] * 15, check=lambda n: 1.0 + 0.1 * n, drafting=0.0)
    assert lengths.num_checked(16) == 1

    def chosen(size: int) -> int:
        return lengths.choose(
            0, plain=1.0, check=lambda k: 1.0 + 0.3 * size * k, draft=lambda k: 0.0
        )

    assert chosen(4) == 0 and chosen(lengths.num_checked(4)) > 0


def test_parents_stay_with_their_children() -> None:
    draft = Draft(tokens=[5, 6, 7, 8], parents=[-1, -1, 1, 2], chances=[0.1, 0.8, 0.8, 0.3])
    kept = worth([*draft.chances], lambda count: 1.0 + 0.3 * count)
    assert kept == [1, 2], "of equal chances the parent comes first"
    left = _without(draft, kept)
    assert (left.tokens, left.parents, left.chances) == ([6, 7], [-1, 0], [0.8, 0.8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_target(folder / "target")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("name", ["medusa", "eagle"])
@pytest.mark.parametrize("dear", [False, True])
def test_trees_shrink_where_passes_are_dear(
    folder: Path, name: str, dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only there; the text is the same. No path's chance is above that of its beginning."""

    def seconds(
        self: Any, num_tokens: int, role: str = "target", layers: int | None = None
    ) -> float:
        # Not so dear that there would be no draft.
        return 0.0 if role == "draft" else 1.0 + 0.06 * dear * max(num_tokens - 3, 0)

    drafts: list[tuple[Draft, Draft]] = []

    def recorded(draft: Draft, kept: list[int]) -> Draft:
        drafts.append((draft, _without(draft, kept)))
        return drafts[-1][1]

    monkeypatch.setattr(Run, "pass_seconds", seconds)
    monkeypatch.setattr(speculative, "_without", recorded)
    engine = Engine(folder / "target", draft=folder / name, device="cpu", cache_tokens=1024)
    options = {"drafter": name, "length": 3, "adaptive": True}
    request = Request(prompt=ids(3, 9), method="speculative", max_new_tokens=8, options=options)
    tokens = engine.generate(request).tokens
    assert tokens == engine.generate(Request(prompt=ids(3, 9), max_new_tokens=8)).tokens
    shrunk = [len(checked.tokens) < len(proposed.tokens) for proposed, checked in drafts]
    assert drafts and any(shrunk) == dear
    for proposed, checked in drafts:
        assert checked.tokens and len(checked.tokens) <= len(proposed.tokens)
        assert proposed.parents is not None
        for parent, chance in zip(proposed.parents, proposed.chances, strict=True):
            assert chance <= (1.0 if parent < 0 else proposed.chances[parent])

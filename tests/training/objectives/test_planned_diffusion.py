"""Planned diffusion: its two ends, its exact value, and who sees whom in its one pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.small_tokenizers import CORPUS
from tests.training.objectives.closed_forms import planned_diffusion
from tests.training.objectives.toys import (
    PLAN,
    ToyModel,
    mean_loss,
    pack,
    repeat,
    tiniest_model,
    toy_model,
    words,
)
from tests.training.runs import small_recipe

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.plans import PlanTokens
from anyorder.model.loaded import load
from anyorder.training.metrics import StepMetrics
from anyorder.training.objectives.masked_diffusion import MaskedDiffusion
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.planned_diffusion import PlannedDiffusion
from anyorder.training.trainer import Trainer

TINY = PlanTokens(topic=2, topic_end=3, span=4, span_end=5, sync=6, pad=7, digits={})


def tagged(text: str, tags: PlanTokens) -> list[int]:
    """Ids of a document spelt like `0<1><0>(10_)(1)|01`."""
    places = {"<": "topic", ">": "topic_end", "(": "span", ")": "span_end", "|": "sync", "_": "pad"}
    return [getattr(tags, places[c]) if c in places else int(c) for c in text]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"span_weight": 0.25},
        {"schedule": "cosine", "min_noise": 0.3},
        {"schedule": "square", "min_noise": 0.0},
    ],
)
def test_the_mean_over_draws_is_what_decoding_pays(options: dict[str, Any]) -> None:
    objective = PlannedDiffusion(**options)
    toy = tiniest_model(9, mask=True)
    model = replace(toy, abilities=replace(toy.abilities, plan_tokens=TINY))
    text = "0<1><0>(10_)(1)|01<0>(01)|1"
    document = tagged(text, TINY)
    given = [0, text.index("10_")]
    targets = [place for place in range(len(text)) if place not in given]
    row = pack(
        [tagged("1(0)", TINY), document],
        given=[(0, place) for place in (*range(4), *(4 + place for place in given))],
        length=4 + len(text) + 2,
    )
    copies = 200
    mean, error = mean_loss(objective, model, repeat(row, copies), draws=20)
    expected = planned_diffusion(objective, model, document, targets)
    assert error < 0.02 * mean
    assert abs(mean / copies - expected) < 4 * error / copies + 1e-5 * expected
    # Outside of spans every target counts, inside those that are no tags.
    weight = objective.loss(model, row, torch.Generator()).weight
    assert weight == len([c for c in text if c not in "()"]) - len(given)


def test_text_without_tags_is_the_chain_rule() -> None:
    model = toy_model()
    batch = pack([words(0, 9, 40), words(1, 6, 40)], [words(2, 12, 40)], given=[(0, 3), (1, 0)])
    found = PlannedDiffusion().loss(model, batch, torch.Generator())
    exact = NextToken().loss(model, batch, torch.Generator())
    assert found.weight == exact.weight
    torch.testing.assert_close(found.total, exact.total)


def test_one_span_of_everything_is_masked_diffusion() -> None:
    model = toy_model()
    rows = [[[PLAN.span, *words(row, 10, 40), PLAN.span_end]] for row in range(3)]
    batch = pack(*rows, given=[(row, place) for row in range(3) for place in (0, 11)])
    for schedule in ("linear", "square"):
        planned, masked = (
            objective.loss(model, batch, torch.Generator().manual_seed(5))
            for objective in (
                PlannedDiffusion(schedule=schedule),  # type: ignore[arg-type]
                MaskedDiffusion(schedule=schedule),  # type: ignore[arg-type]
            )
        )
        assert planned.weight == masked.weight == 30
        assert planned.total > 0
        torch.testing.assert_close(planned.total, masked.total)


class Spy(ToyModel):
    """Remembers what it was given."""

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        object.__setattr__(self, "batch", batch)
        return super().hidden(batch)


def test_who_sees_whom_and_where() -> None:
    toy = toy_model()
    spy = Spy(network=toy.network, abilities=toy.abilities)
    first, second = tagged("1(2)(3)|", PLAN), tagged("4(5", PLAN)
    batch = pack([first, second], [words(0, 11, 40)])
    PlannedDiffusion(min_noise=1.0).loss(spy, batch, torch.Generator())
    seen: PackedBatch = spy.batch  # type: ignore[attr-defined]
    mask = toy.abilities.mask_token
    assert mask is not None
    noisy = [PLAN.span, mask, PLAN.span_end] * 2 + [PLAN.span, mask]
    assert seen.tokens_N.view(2, 19)[0].tolist() == first + second + noisy
    positions = seen.positions_N.view(2, 19)[0].tolist()
    assert positions == [*range(8), *range(3), *range(1, 7), 1, 2]
    drawn = """
        1..........  ........
        1111.......  ........
        1111.......  ........
        1111.......  ........
        1...111....  ........
        1...111....  ........
        1...111....  ........
        11111111...  ........
        ........1..  ........
        ........111  ........
        ........111  ........

        1..........  111.....
        1..........  111.....
        1..........  111.....
        1..........  ...111..
        1..........  ...111..
        1..........  ...111..
        ........1..  ......11
        ........1..  ......11
    """
    rows = [line.replace(" ", "") for line in drawn.split("\n") if line.strip()]
    visible = seen.groups[0].visible_RQK
    assert visible is not None
    assert ["".join("1" if sees else "." for sees in row) for row in visible[0]] == rows
    # Rows without as many spans are filled up with tokens that nothing sees.
    assert not visible[1][:11, 11:].any() and visible[1].any(dim=1).all()


def test_every_span_draws_its_own_share_of_masks() -> None:
    toy = toy_model()
    spy = Spy(network=toy.network, abilities=toy.abilities)
    span = [PLAN.span, *[5] * 50, PLAN.span_end]
    batch = pack([span * 4])
    shares = []
    for seed in range(10):
        PlannedDiffusion().loss(spy, batch, torch.Generator().manual_seed(seed))
        masked = spy.batch.tokens_N[208:] == toy.abilities.mask_token  # type: ignore[attr-defined]
        shares.append(masked.view(4, 52)[:, 1:-1].double().mean(1))
    found = torch.stack(shares)
    assert (found.max(1).values - found.min(1).values > 0.4).all()
    assert float(found.mean()) == pytest.approx(0.5, abs=0.06)


def test_a_recipe_on_plain_text_ends_in_a_model_that_plans(tmp_path: Path) -> None:
    """Rules find the plans, the tokenizer that is trained has the tags, the folder says so."""
    paragraphs = [
        f"{word} is the word number {n} of all." for n, word in enumerate(CORPUS[0].split())
    ]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs * 3))
    sources = [{"path": str(tmp_path / "a.txt"), "plan": "rules"}]
    recipe = small_recipe(
        tmp_path / "out",
        model={"context": 128},
        data={"sources": sources, "validation": 0.0, "length": 128},
        objective={"name": "planned_diffusion"},
        run={"steps": 3},
    )
    seen: list[StepMetrics] = []
    loaded = load(Trainer(recipe, watch=seen.append).run())
    tags, tokenizer = loaded.abilities.plan_tokens, loaded.tokenizer
    assert tags is not None and tokenizer is not None
    assert tags.sync in tokenizer.encode("a<sync/>b")
    assert loaded.abilities.attention == {"causal", "bidirectional"}
    assert loaded.abilities.mask_token is not None
    assert all(0 < line.extras["text"] < line.extras["nats"] for line in seen)


def test_what_it_needs_and_what_a_model_has_learnt() -> None:
    abilities = toy_model().abilities
    PlannedDiffusion().check(abilities)
    assert PlannedDiffusion().trained(abilities).attention == {"causal", "bidirectional"}
    with pytest.raises(UserError, match=r"needs the control tokens <topic> .* toy lacks some"):
        PlannedDiffusion().check(replace(abilities, plan_tokens=None))

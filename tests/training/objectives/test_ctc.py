"""The CTC objective: which texts fit, that parts change nothing, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.objectives.toys import ToyModel, equip, pack, toy_model, words

from anyorder.core.errors import UserError
from anyorder.training.objectives import ctc
from anyorder.training.objectives.ctc import Ctc


def model() -> ToyModel:
    return equip(toy_model(), Ctc())


def test_repeats_need_a_place_more() -> None:
    """A source of three tokens and its ends, at two vertices each: nine places behind the first."""
    narrow = model()
    narrow = replace(narrow, abilities=replace(narrow.abilities, vertices_per_token=2))
    fits = [[9, *range(1, 10)], [9, 1, 1, 2, 3, 4, 5, 6, 7]]
    too_long = [[9, *range(1, 11)], [9, 1, 1, 2, 3, 4, 5, 6, 7, 8]]
    for text in fits:
        found = Ctc().loss(narrow, pack([text]), torch.Generator())
        assert found.weight == len(text) - 1 and found.metrics["left_out"] == 0
        assert found.total.isfinite() and found.total > 0
    for text in too_long:
        found = Ctc().loss(narrow, pack([text]), torch.Generator())
        found.total.backward()
        assert found.total == 0 and found.weight == 0 and found.metrics["left_out"] == 1
    alone = Ctc().loss(narrow, pack([fits[0]]), torch.Generator()).total
    together = Ctc().loss(narrow, pack([fits[0]], [too_long[1]]), torch.Generator()).total
    torch.testing.assert_close(together, alone)


def test_parts_of_the_documents_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack([words(0, 6), words(1, 5), words(2, 9)], [words(3, 4), words(4, 7)])
    results = []
    for limit in (ctc.KEPT_LOGITS, 61 * 30):
        monkeypatch.setattr(ctc, "KEPT_LOGITS", limit)
        toy = model()
        found = Ctc().loss(toy, batch, torch.Generator())
        found.total.backward()
        results.append((found.total, [p.grad for p in toy.network.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_networks_it_cannot_train() -> None:
    abilities = model().abilities
    Ctc().check(abilities)
    for changes in ({"vertices_per_token": 0}, {"num_links": 4}):
        with pytest.raises(UserError, match=r"give \[model\] vertices_per_token and links = false"):
            Ctc().check(replace(abilities, **changes))

"""The DAG objective: how graphs are laid out, what glancing shows, what is left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.objectives.test_mask_predict import Spy, spy
from tests.training.objectives.toys import equip, pack, toy_model, words

from anyorder.core.errors import UserError
from anyorder.sampling import vertices
from anyorder.sampling.vertices import Graphs
from anyorder.training.objectives.dag import Dag


def graphs(*rows: list[list[int]], per_token: int = 2) -> Graphs:
    batch = pack(*rows)
    assert batch.source_documents_BS is not None
    return Graphs.of(batch, batch.source_documents_BS, per_token)


def test_where_graphs_lie() -> None:
    """Sources of three and two tokens and two ends make graphs of ten and eight vertices."""
    first, second, third = [9, *words(0, 4)], [8, *words(1, 2)], [7, *words(2, 6)]
    found = graphs([first, second], [third])
    assert found.documents_BG.tolist() == [[0] * 10 + [1] * 8, [0] * 10 + [-1] * 8]
    assert found.num_vertices_D.tolist() == [8, 10, 10]
    assert found.firsts_D.tolist() == [10, 0, 18] and found.starts_D.tolist() == [8, 9, 7]
    assert found.num_tokens_D.tolist() == [2, 4, 6]
    for text, row in zip((second, first, third), found.texts_DK.tolist(), strict=True):
        assert row == text[1:] + [0] * (7 - len(text))
    places, documents = found.places()
    assert places.tolist() == [*range(10, 18), *range(10), *range(18, 28)]
    assert documents.tolist() == [0] * 8 + [1] * 10 + [2] * 10
    paths = torch.tensor([[3, 7, 0, 0, 0, 0], [1, 2, 3, 9, 0, 0], [1, 2, 3, 4, 5, 9]])
    shown = torch.zeros_like(paths, dtype=torch.bool)
    shown[0, 1] = shown[2, 2] = True
    inputs = found.inputs(60, paths, shown).tolist()
    assert inputs[0] == [9] + [60] * 9 + [8] + [60] * 6 + [second[2]]
    assert inputs[1] == [7, 60, 60, third[3]] + [60] * 14


def test_texts_that_do_not_fit_are_left_out_and_counted() -> None:
    """Ten vertices spell nine tokens, one at each but the first, and no more."""
    fits, too_long = [9, *words(0, 9)], [9, *words(0, 10)]
    assert graphs([fits]).num_left_out == 0
    assert graphs([too_long]).num_left_out == 1
    objective = Dag()
    model = equip(toy_model(), objective)
    model = replace(model, abilities=replace(model.abilities, vertices_per_token=2))
    both = objective.loss(model, pack([fits], [too_long]), torch.Generator())
    alone = objective.loss(model, pack([fits]), torch.Generator())
    assert both.weight == alone.weight == 9
    assert both.metrics["left_out"] == 1 and alone.metrics["left_out"] == 0
    torch.testing.assert_close(both.total, alone.total)
    nothing = objective.loss(model, pack([too_long]), torch.Generator())
    nothing.total.backward()
    assert nothing.total == 0 and nothing.weight == 0


def test_parts_of_the_documents_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pack([words(0, 6), words(1, 5), words(2, 9)], [words(3, 4), words(4, 7)])
    results = []
    for limit in (1 << 22, 1000):
        monkeypatch.setattr(vertices, "_TABLE", limit)
        objective = Dag(glancing=True)
        model = equip(toy_model(), objective)
        found = objective.loss(model, batch, torch.Generator().manual_seed(2))
        found.total.backward()
        results.append((found.total, [p.grad for p in model.network.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert len(list(graphs([words(0, 6), words(1, 5)], [words(2, 3)], per_token=9).parts())) == 3


@pytest.mark.parametrize(("progress", "ratio"), [(0.0, 0.8), (1.0, 0.0)])
def test_glancing_shows_a_share_of_the_mistakes_on_the_best_path(
    progress: float, ratio: float
) -> None:
    objective = Dag(glancing=True, first_ratio=0.8, last_ratio=0.0)
    model = spy(objective)
    document = [9, *words(0, 12)]
    batch = replace(pack([document]), progress=progress)
    objective.loss(model, batch, torch.Generator().manual_seed(0))
    first, second = model.__dict__["seen"]
    mask = model.abilities.mask_token
    assert first.tokens_N[0] == 9 and (first.tokens_N[1:] == mask).all()
    shown = torch.nonzero(second.tokens_N[1:] != mask).flatten() + 1
    assert second.tokens_N[0] == 9
    # Of an untrained model nearly all is wrong, so that the shown tokens are about that share.
    assert round(ratio * 9) <= len(shown) <= round(ratio * 12)
    # They keep the text's order.
    text, found = iter(document[1:]), second.tokens_N[shown].tolist()
    assert all(any(token == other for other in text) for token in found)


def test_what_is_shown_costs_less() -> None:
    objective = Dag(glancing=True, first_ratio=1.0)
    model = equip(toy_model(), objective)
    batch = pack([[9, *words(0, 12)]])
    glanced = objective.loss(model, batch, torch.Generator().manual_seed(0)).total
    plain = Dag().loss(model, batch, torch.Generator()).total
    assert float(glanced.detach()) < 0.6 * float(plain.detach())


def test_a_network_without_links_is_refused() -> None:
    abilities = equip(toy_model(), Dag()).abilities
    Dag().check(abilities)
    with pytest.raises(UserError, match=r"toy has none; give \[model\] vertices_per_token"):
        Dag().check(replace(abilities, num_links=0))


def test_the_first_pass_leaves_no_gradient() -> None:
    objective = Dag(glancing=True)
    model = equip(toy_model(), objective)
    flags = []

    class Watching(Spy):
        def links(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
            flags.append(hidden_DLW.requires_grad)
            return super().links(hidden_DLW, num_vertices_D)

    watching = Watching(network=model.network, abilities=model.abilities)
    objective.loss(watching, pack([words(0, 6)]), torch.Generator())
    assert flags == [False, True]

"""Span infill: what documents become, and that no token is lost, doubled or learnt from itself."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.training.objectives.toys import ToyModel, pack, toy_model, words

from anyorder.core.batch import PackedBatch
from anyorder.core.errors import UserError
from anyorder.core.objective import TrainingBatch
from anyorder.training.objectives.next_token import NextToken
from anyorder.training.objectives.span_infill import SpanInfill

PRE, SUF, MID, END = 57, 58, 59, 56


@functools.cache
def infill_model(**abilities: Any) -> ToyModel:
    model = toy_model()
    changes: dict[str, Any] = {"infill_tokens": (PRE, SUF, MID), "end_tokens": frozenset({END})}
    return replace(model, abilities=replace(model.abilities, **{**changes, **abilities}))


def arranged(
    objective: SpanInfill, batch: TrainingBatch, seed: int = 0, **abilities: Any
) -> list[list[list[int]]]:
    """Documents as the network saw them, by row."""
    model = infill_model(**abilities)
    seen: list[PackedBatch] = []

    class Spy(ToyModel):
        def hidden(self, batch: PackedBatch) -> torch.Tensor:
            seen.append(batch)
            return super().hidden(batch)

    spy = Spy(network=model.network, abilities=model.abilities)
    objective.loss(spy, batch, torch.Generator().manual_seed(seed))
    (packed,) = seen
    rows = len(batch.tokens_BT)
    found = []
    for tokens, positions in zip(
        packed.tokens_N.view(rows, -1).tolist(),
        packed.positions_N.view(rows, -1).tolist(),
        strict=True,
    ):
        starts = [place for place, position in enumerate(positions) if position == 0]
        cuts = itertools.pairwise([*starts, len(tokens)])
        found.append([tokens[start:end] for start, end in cuts])
    return found


def restored(document: list[int]) -> list[int]:
    """The text that an arranged document was made of."""
    if document[0] != PRE:
        return document
    suf, mid = document.index(SUF), document.index(MID)
    end = [END] if document[-1] == END else []
    middle = document[mid + 1 : len(document) - len(end)]
    if suf == 1:  # prefix and middle follow each other
        return middle + document[suf + 1 : mid] + end
    return document[1:suf] + middle + document[suf + 1 : mid] + end


def texts() -> tuple[list[list[int]], TrainingBatch]:
    documents = [[*words(seed, 4 + seed, 50), END] for seed in range(4)]
    return documents, pack(documents[:2], documents[2:])


def test_every_token_is_there_once() -> None:
    documents, batch = texts()
    shapes = Counter[str]()
    for seed in range(40):
        rows = arranged(SpanInfill(rate=0.8), batch, seed)
        found = [*rows[0][:2], *rows[1][:2]]  # behind them, padding
        assert [restored(document) for document in found] == documents
        kinds = ["plain" if d[0] != PRE else "spm" if d[1] == SUF else "psm" for d in found]
        # An empty prefix makes both orders look alike.
        shapes.update(kinds)
    assert all(shapes[kind] > 20 for kind in ("plain", "psm", "spm"))


@pytest.mark.parametrize(("suffix_first", "second"), [(0.0, "prefix"), (1.0, "suffix")])
def test_order(suffix_first: float, second: str) -> None:
    objective = SpanInfill(rate=1.0, suffix_first=suffix_first)
    batch = pack([list(range(10))])
    cuts = set()
    for seed in range(200):
        ((document, *_),) = arranged(objective, batch, seed)
        suf, mid = document.index(SUF), document.index(MID)
        assert document[0] == PRE and document[-1] == END
        suffix, rest = document[suf + 1 : mid], document[mid + 1 : -1]
        if second == "suffix":
            assert suf == 1 and rest + suffix == list(range(10))
        else:
            prefix = document[1:suf]
            assert prefix + rest + suffix == list(range(10))
            cuts.add((len(prefix), len(prefix) + len(rest)))
    if second == "prefix":
        assert (0, 10) in cuts or len(cuts) > 50, "all cuts can be drawn"
        assert {place for cut in cuts for place in cut} == set(range(11))


def test_uncut_documents_are_next_tokens() -> None:
    _, batch = texts()
    found = SpanInfill(rate=0.0).loss(infill_model(), batch, torch.Generator())
    expected = NextToken().loss(infill_model(), batch, torch.Generator())
    torch.testing.assert_close(found.total, expected.total)
    assert found.weight == expected.weight and found.metrics == pytest.approx(expected.metrics)


def test_control_tokens_are_given_and_the_end_is_learnt() -> None:
    model = infill_model()
    document = [*words(0, 6, 50), END]
    rng = torch.Generator()
    found = SpanInfill(rate=1.0).loss(model, pack([document]), rng.manual_seed(3))
    ((seen, *_),) = arranged(SpanInfill(rate=1.0), pack([document]), 3)
    targets = [token not in (PRE, SUF, MID) for token in seen]
    given = [(0, place) for place, target in enumerate(targets) if not target]
    expected = NextToken().loss(model, pack([seen], given=given), rng)
    assert expected.weight == len(document), "the first token and END too"
    torch.testing.assert_close(found.total, expected.total)


def test_given_tokens_stay_given() -> None:
    batch = pack([words(0, 8, 50)], given=[(0, place) for place in range(8)])
    found = SpanInfill(rate=1.0).loss(infill_model(), batch, torch.Generator())
    assert found.total == 0 and found.weight == 0


def test_a_document_stays_within_the_context() -> None:
    batch = pack([words(0, 20, 50)])
    ((document, *_),) = arranged(SpanInfill(rate=1.0), batch, context_length=20)
    assert len(document) == 20 and sorted(document[:0] + restored(document)[:-1]) == sorted(
        words(0, 20, 50)[:16]
    )


def test_without_an_end_token_nothing_is_put_behind_the_middle() -> None:
    batch = pack([list(range(6))])
    ((document, *_),) = arranged(SpanInfill(rate=1.0), batch, end_tokens=frozenset())
    assert len(document) == 9 and restored(document) == list(range(6))


def test_models_without_control_tokens_are_refused() -> None:
    model = infill_model(infill_tokens=None)
    with pytest.raises(UserError, match="needs the control tokens <fim_prefix>"):
        SpanInfill().check(model.abilities)

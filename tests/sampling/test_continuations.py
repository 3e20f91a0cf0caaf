"""Prompts and references out of packed documents, and texts packed again."""

from __future__ import annotations

import torch
from tests.training.objectives.toys import pack, toy_model, words

from anyorder.sampling.continuations import (
    Continuation,
    continuations,
    draw_texts,
    mean_nats,
    pack_documents,
    pack_texts,
    rows_of,
    sum_rows,
)
from anyorder.training.objectives.next_token import NextToken


def parts(*rows: list[list[int]], given: list[tuple[int, int]], prompt_length: int = 1) -> object:
    found = continuations(pack(*rows, given=given), prompt_length=prompt_length)
    return [(each.prompt, each.reference) for each in found]


def test_what_is_given_is_the_prompt() -> None:
    first, second = [1, 2, 3, 4], [5, 6, 7]
    found = parts([first, second], [[8, 9]], given=[(0, 0), (0, 1), (0, 4)])
    assert found == [((1, 2), (3, 4)), ((5,), (6, 7)), ((8,), (9,))]


def test_a_chats_last_turn_is_the_reference() -> None:
    chat = [1, 2, 3, 4, 5, 6, 7, 8]
    found = parts([chat], given=[(0, 0), (0, 1), (0, 4), (0, 7)])
    assert found == [((1, 2, 3, 4, 5), (6, 7))]


def test_documents_that_give_nothing() -> None:
    rows = [[1, 2, 3, 4, 5], [6, 7]]
    assert parts(rows, given=[], prompt_length=3) == [((1, 2, 3), (4, 5))]
    assert parts(rows, given=[(0, place) for place in range(7)]) == []


def test_packed_texts() -> None:
    batch = pack_texts([[1, 2], [3]], [[4], [5, 6, 7]], torch.device("cpu"))
    assert batch.tokens_BT.tolist() == [[1, 2, 4, 0], [3, 5, 6, 7]]
    assert batch.documents_BT.tolist() == [[0, 0, 0, -1], [0, 0, 0, 0]]
    assert batch.targets_BT.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert rows_of(batch).tolist() == [0, 1, 1, 1]
    sums = sum_rows(torch.tensor([1.0, 2.0, 3.0, 4.0]), rows_of(batch), 2)
    assert sums.tolist() == [1.0, 9.0]


def test_documents_are_learnt_as_a_whole() -> None:
    """Earlier turns of a chat, and the beginnings of documents that give nothing."""
    chat = pack([words(0, 8)], given=[(0, 0), (0, 1), (0, 4), (0, 7)])
    prose = pack([words(1, 5)])
    for batch, length in ((chat, 7), (prose, 5)):
        documents = continuations(batch, prompt_length=3)
        packed = pack_documents(documents, torch.device("cpu"))
        assert torch.equal(packed.tokens_BT, batch.tokens_BT[:, :length])
        assert torch.equal(packed.targets_BT, batch.targets_BT[:, :length])
        expected = NextToken().loss(toy_model(), batch, torch.Generator())
        found = mean_nats(toy_model(), packed)
        torch.testing.assert_close(found, (expected.total / expected.weight)[None])


def test_texts_are_as_long_as_their_references_or_as_told() -> None:
    model = toy_model()
    pairs = [
        Continuation(prompt=(1, 2), reference=tuple(words(0, 5)), targets=(True,) * 7),
        Continuation(prompt=(3,), reference=tuple(words(1, 2)), targets=(True,) * 3),
    ]

    def lengths(limit: int | None) -> list[int]:
        texts = draw_texts(
            model,
            pairs,
            num_samples=2,
            max_new_tokens=limit,
            temperature=1.0,
            rng=torch.Generator(),
        )
        return [len(text) for text in texts]

    assert lengths(None) == [5, 5, 2, 2]
    assert lengths(3) == [3] * 4
    room = model.abilities.context_length - 2
    assert lengths(10_000) == [room] * 4

"""Batches cut into patches, against patches written by hand."""

from __future__ import annotations

import pytest
import torch
from tests.training.objectives.toys import pack
from torch.distributions import Normal, kl_divergence

from anyorder.core.vectors import Patches, cut_patches, normal_divergence

END, FILL = 0, 9


def cut(*rows: list[list[int]], given: tuple[tuple[int, int], ...] = (), size: int = 3) -> Patches:
    batch = pack(*rows, given=given)
    return cut_patches(
        batch.tokens_BT,
        batch.documents_BT,
        batch.targets_BT,
        patch_size=size,
        fill_token=FILL,
        end_tokens={END, 8},
    )


def test_patches_follow_documents() -> None:
    # The first document ends in its second patch, the second is cut off, the third is short.
    found = cut([[1, 2, 3, 4, END], [1, 2, 3, 4, 5], [8]], [[5, 6, 7]], given=((0, 0), (0, 4)))
    assert found.documents_BP.tolist() == [[0, 0, 1, -1, 2], [0, -1, -1, -1, -1]]
    kept = found.documents_BP >= 0
    assert found.tokens_BPK[kept].tolist() == [
        [1, 2, 3],
        [4, END, FILL],
        [1, 2, 3],
        [8, FILL, FILL],
        [5, 6, 7],
    ]
    assert found.positions_BP[kept].tolist() == [0, 1, 0, 0, 0]
    assert torch.equal(found.targets_BP, kept)


def test_targets_are_patches_with_a_target() -> None:
    found = cut([[1, 2, 3, 4, 5, 6, 7, 8, END]], given=tuple((0, place) for place in range(4)))
    assert found.targets_BP.tolist() == [[False, True, True]]
    # An end token ends a text at the document's end only.
    assert cut([[8, 1, 2, 8, 1]]).documents_BP.tolist() == [[0, -1]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_whole_documents_keep_all_their_tokens(size: int) -> None:
    documents = [[*range(1, 1 + length), END] for length in (1, 2, 3, 5, 7)]
    found = cut(documents, size=size)
    for number, document in enumerate(documents):
        patches = found.tokens_BPK[0][found.documents_BP[0] == number]
        fill = -len(document) % size
        assert patches.flatten().tolist() == document + [FILL] * fill


def test_a_batch_without_whole_patches() -> None:
    found = cut([[1, 2]])
    assert found.tokens_BPK.shape == (1, 1, 3)
    assert found.documents_BP.tolist() == [[-1]] and not found.targets_BP.any()


def test_divergence_of_normal_numbers() -> None:
    rng = torch.Generator().manual_seed(0)
    mean_ML, log_std_ML = torch.randn(2, 5, 3, generator=rng, dtype=torch.float64).unbind()
    drawn, prior = Normal(mean_ML, log_std_ML.exp()), Normal(torch.zeros(()), torch.ones(()))
    expected = kl_divergence(drawn, prior)
    torch.testing.assert_close(normal_divergence(mean_ML, log_std_ML), expected)

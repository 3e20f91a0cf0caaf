"""Random subsets: their sizes, and that every one is as likely as the others."""

from __future__ import annotations

from collections import Counter

import torch

from anyorder.sampling.subsets import count, random_subsets, units

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1], [0, 0, 1, 1, 1, 1, 2, 2]])
CANDIDATES = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)


def test_units_number_documents_through_all_rows() -> None:
    numbers = units(DOCUMENTS)
    assert numbers.tolist() == [[0, 0, 0, 0, 1, 1, 1, 2], [3, 3, 4, 4, 4, 4, 5, 5]]
    assert count(CANDIDATES, numbers).tolist() == [3, 2, 0, 2, 3, 0]


def test_every_subset_of_its_size_is_equally_likely() -> None:
    numbers, rng = units(DOCUMENTS), torch.Generator().manual_seed(0)
    sizes = torch.tensor([2, 1, 4, 0, 3, 1])
    seen = Counter[tuple[int, ...]]()
    for _ in range(900):
        picked = random_subsets(CANDIDATES, numbers, sizes, rng)
        assert not (picked & ~CANDIDATES).any()
        assert count(picked, numbers).tolist() == [2, 1, 0, 0, 3, 0]
        seen[tuple(torch.nonzero(picked[0]).flatten().tolist())] += 1
    # Two of three places and one of two others: chi-squared with 5 degrees of freedom exceeds 20.5
    # once in a thousand.
    assert len(seen) == 6 and sum((n - 150) ** 2 / 150 for n in seen.values()) < 20.5


def test_a_document_s_choice_is_its_own() -> None:
    numbers, sizes = units(DOCUMENTS), torch.tensor([2, 1, 0, 1, 2, 0])
    other = CANDIDATES.clone()
    other[0, 4:7] = torch.tensor([True, True, True])
    first, second = (
        random_subsets(candidates, numbers, sizes, torch.Generator().manual_seed(3))
        for candidates in (CANDIDATES, other)
    )
    assert torch.equal(first[0, :4], second[0, :4]) and torch.equal(first[1], second[1])

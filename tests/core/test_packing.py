"""Packed documents: starts, positions and company."""

from __future__ import annotations

import torch

from anyorder.core.packing import document_positions, document_starts, same_document

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [4, 2, 2, 2, 2, 2]])


def test_starts_and_positions() -> None:
    assert document_starts(DOCUMENTS).int().tolist() == [[1, 0, 0, 1, 0, 1], [1, 1, 0, 0, 0, 0]]
    assert document_positions(DOCUMENTS).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]


def test_company() -> None:
    expected = [
        [documents[i] == documents[j] for i in range(6) for j in range(6)]
        for documents in DOCUMENTS.tolist()
    ]
    assert same_document(DOCUMENTS).flatten(1).tolist() == expected

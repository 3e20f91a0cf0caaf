"""Where the vertices of decoding graphs lie in packed rows, and which text each graph spells.

Every document of a row has a graph of `per_token` vertices for each token of its source and for its
two ends (DA-Transformer, arXiv 2205.07459). Its first token, where the text begins, is given at the
first vertex; its targets behind it are the text.

Shape suffixes: B rows, T target and S source tokens each, C documents of a row, D documents with a
text, K tokens of one, L vertices of one, G vertices of a row, M vertices of all documents in a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from anyorder.core.objective import TrainingBatch
from anyorder.sampling.chain_rule import predicted

_TABLE = 1 << 22
"""Most transitions [D, L, L] that are looked at together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Graphs:
    """The graphs of a batch. Documents with a text that fits come in order of size."""

    documents_BG: torch.Tensor
    """int64; which document of its row a vertex belongs to, -1 for padding."""
    firsts_D: torch.Tensor
    """int64; place of each document's first vertex among all B * G."""
    num_vertices_D: torch.Tensor
    starts_D: torch.Tensor
    """int64; the token given at the first vertex."""
    texts_DK: torch.Tensor
    """int64; 0 beyond a text's end."""
    num_tokens_D: torch.Tensor
    num_left_out: int
    """Documents whose text has more tokens than there are vertices behind the first."""

    @classmethod
    def of(cls, batch: TrainingBatch, source_documents_BS: torch.Tensor, per_token: int) -> Graphs:
        """The graphs of a batch's documents."""
        device = batch.tokens_BT.device
        counts_BC = _counts(source_documents_BS)
        vertices_BC = per_token * (counts_BC + 2) * (counts_BC > 0)
        ends_BC = vertices_BC.cumsum(dim=1)
        num_rows, length = len(vertices_BC), int(ends_BC[:, -1].max())
        places_G = torch.arange(length, device=device)
        documents_BG = torch.searchsorted(ends_BC, places_G.repeat(num_rows, 1), right=True)
        documents_BG = torch.where(places_G < ends_BC[:, -1:], documents_BG, -1)

        learnt_BT = predicted(batch)
        rows, numbers, texts, starts = [], [], [], []
        for row, document in torch.nonzero(counts_BC).tolist():
            inside_T = batch.documents_BT[row] == document
            text = batch.tokens_BT[row][inside_T & learnt_BT[row]]
            if len(text):
                rows.append(row)
                numbers.append(document)
                texts.append(text)
                starts.append(batch.tokens_BT[row][inside_T][0])
        num_tokens_D = torch.tensor([len(text) for text in texts], device=device)
        rows_D = torch.tensor(rows, dtype=torch.int64, device=device)
        numbers_D = torch.tensor(numbers, dtype=torch.int64, device=device)
        num_vertices_D = vertices_BC[rows_D, numbers_D]
        firsts_D = rows_D * length + ends_BC[rows_D, numbers_D] - num_vertices_D
        order_D = num_vertices_D.argsort(stable=True)
        kept_D = order_D[(num_tokens_D < num_vertices_D)[order_D]]
        none_1K = torch.zeros(1, 1, dtype=torch.int64, device=device)
        texts_DK = pad_sequence(texts, batch_first=True) if texts else none_1K[:0]
        starts_D = torch.stack(starts) if starts else none_1K[:0, 0]
        return cls(
            documents_BG=documents_BG,
            firsts_D=firsts_D[kept_D],
            num_vertices_D=num_vertices_D[kept_D],
            starts_D=starts_D[kept_D],
            texts_DK=texts_DK[kept_D],
            num_tokens_D=num_tokens_D[kept_D],
            num_left_out=len(texts) - len(kept_D),
        )

    @property
    def tokens_DK(self) -> torch.Tensor:
        """bool; is there a token of the text?"""
        places_K = torch.arange(self.texts_DK.shape[1], device=self.texts_DK.device)
        return places_K < self.num_tokens_D[:, None]

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every vertex of the documents with a text, one document behind the other: its place
        among all B * G, and its document, [M] each."""
        documents_M = torch.arange(len(self.firsts_D), device=self.firsts_D.device)
        documents_M = documents_M.repeat_interleave(self.num_vertices_D)
        before_D = self.num_vertices_D.cumsum(0) - self.num_vertices_D
        within_M = torch.arange(len(documents_M), device=documents_M.device) - before_D[documents_M]
        return self.firsts_D[documents_M] + within_M, documents_M

    def inputs(
        self, mask_token: int, paths_DK: torch.Tensor, shown_DK: torch.Tensor
    ) -> torch.Tensor:
        """Tokens [B, G]: masks, but for the starts and what is shown of the texts on paths."""
        tokens_N = torch.full_like(self.documents_BG, mask_token).flatten()
        tokens_N[self.firsts_D] = self.starts_D
        tokens_N[(self.firsts_D[:, None] + paths_DK)[shown_DK]] = self.texts_DK[shown_DK]
        return tokens_N.view_as(self.documents_BG)

    def parts(self) -> Iterator[slice]:
        """Runs of documents to look at together."""
        sizes = self.num_vertices_D.tolist()
        first = 0
        for place, size in enumerate(sizes):
            if (place + 1 - first) * size**2 > _TABLE and place > first:
                yield slice(first, place)
                first = place
        if sizes:
            yield slice(first, len(sizes))


def _counts(documents_BS: torch.Tensor) -> torch.Tensor:
    """int64 [B, C]; tokens of each document of a row."""
    num_documents = max(int(documents_BS.max()) + 1, 1)
    numbers_C = torch.arange(num_documents, device=documents_BS.device)
    return (documents_BS[:, :, None] == numbers_C).sum(dim=1)

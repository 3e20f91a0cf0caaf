"""Where the vertices of decoding graphs lie in packed rows, and which text each graph spells.

Every document of a row has a graph of `per_token` vertices for each token of its source and for its
two ends (DA-Transformer, arXiv 2205.07459). Its first token, where the text begins, is given at the
first vertex; its targets behind it are the text.

Shape suffixes: B rows, T target and S source tokens each, C documents (of a row, or of all), D
documents with a text that fits, K tokens of one, L vertices of one, G vertices of a row, M vertices
of all D documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from anyorder.core.objective import TrainingBatch
from anyorder.core.packing import document_starts
from anyorder.sampling.chain_rule import predicted
from anyorder.sampling.subsets import count, units

_TABLE = 1 << 18
"""Most transitions [D, L, L] that are looked at together: of documents of about the same size, and
few enough for a processor's cache."""


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

        # Documents in order of rows, as their sources are.
        rows_C, numbers_C = counts_BC.nonzero(as_tuple=True)
        starts_BT = document_starts(batch.documents_BT) & (batch.documents_BT >= 0)
        assert int(starts_BT.sum()) == len(rows_C), "every document has its source"
        learnt_BT = predicted(batch)
        lengths_C = count(learnt_BT, units(batch.documents_BT))[
            units(batch.documents_BT)[starts_BT]
        ]
        vertices_C = vertices_BC[rows_C, numbers_C]
        firsts_C = rows_C * length + ends_BC[rows_C, numbers_C] - vertices_C

        order_C = vertices_C.argsort(stable=True)
        kept_D = order_C[((lengths_C > 0) & (lengths_C < vertices_C))[order_C]]
        texts = torch.split(batch.tokens_BT[learnt_BT], lengths_C.tolist())
        texts_CK = pad_sequence(list(texts), batch_first=True)
        return cls(
            documents_BG=documents_BG,
            firsts_D=firsts_C[kept_D],
            num_vertices_D=vertices_C[kept_D],
            starts_D=batch.tokens_BT[starts_BT][kept_D],
            texts_DK=texts_CK[kept_D],
            num_tokens_D=lengths_C[kept_D],
            num_left_out=int((lengths_C >= vertices_C).sum()),
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

    def some(self, chosen_D: torch.Tensor) -> Graphs:
        """Without some of the documents with a text; their places stay."""
        names = ("firsts_D", "num_vertices_D", "starts_D", "texts_DK", "num_tokens_D")
        kept = {name: getattr(self, name)[chosen_D] for name in names}
        num_left_out = self.num_left_out + int((~chosen_D).sum())
        return Graphs(documents_BG=self.documents_BG, num_left_out=num_left_out, **kept)

    def parts(self, limit: int | None = None, *, power: int = 2) -> Iterator[slice]:
        """Runs of documents to look at together: so many [L, L], or [L] with a `power` of 1, that
        they have at most `limit` elements."""
        limit = _TABLE if limit is None else limit
        sizes = self.num_vertices_D.tolist()
        first = 0
        for place, size in enumerate(sizes):
            if (place + 1 - first) * size**power > limit and place > first:
                yield slice(first, place)
                first = place
        if sizes:
            yield slice(first, len(sizes))


def _counts(documents_BS: torch.Tensor) -> torch.Tensor:
    """int64 [B, C]; tokens of each document of a row."""
    num_documents = max(int(documents_BS.max()) + 1, 1)
    numbers_C = torch.arange(num_documents, device=documents_BS.device)
    return (documents_BS[:, :, None] == numbers_C).sum(dim=1)

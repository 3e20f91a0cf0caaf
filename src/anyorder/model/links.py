"""Where a path through a decoder's vertices goes on: transitions of DA-Transformer.

arXiv 2205.07459: each head makes a distribution over the vertices behind a vertex from queries and
keys, and the vertex itself says how much each head counts. Unlike there, no positions are added to
the hidden states: they carry the decoder's own.

Shape suffixes: D graphs, L vertices each (padded), W width, H heads.
"""

from __future__ import annotations

import torch
from torch import nn


class Links(nn.Module):
    """Log-probabilities of going from one vertex to a later one."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, num_heads, bias=False)

    def forward(self, hidden_DLW: torch.Tensor, num_vertices_D: torch.Tensor) -> torch.Tensor:
        """float32 [D, L, L], from the second dimension to the third; -inf where it is not behind
        or not in the graph."""
        queries, keys = (
            projection(hidden_DLW).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key)
        )
        scores_DHLL = (queries @ keys.transpose(2, 3)).float() * queries.shape[3] ** -0.5
        places_L = torch.arange(hidden_DLW.shape[1], device=hidden_DLW.device)
        behind_LL = places_L[None, :] > places_L[:, None]
        possible_DLL = behind_LL & (places_L < num_vertices_D[:, None])[:, None, :]
        closed_D1LL = ~possible_DLL[:, None]
        # The lowest number, not -inf: the last vertex leads nowhere, and a row of -inf is nan.
        lowest = torch.finfo(torch.float32).min
        shares_DHLL = scores_DHLL.masked_fill(closed_D1LL, lowest).log_softmax(dim=3)
        gates_DHL1 = self.gate(hidden_DLW).float().log_softmax(dim=2).transpose(1, 2)[..., None]
        links_DLL: torch.Tensor = (shares_DHLL + gates_DHL1).logsumexp(dim=1)
        return links_DLL.masked_fill(~possible_DLL, -torch.inf)

"""What a text lacks and what it has too much: two of the Levenshtein Transformer's three heads.

arXiv 1905.11006; the third, which fills placeholders in, is the network's ordinary head. There, a
gap's two neighbours are read side by side to tell how many tokens are missing in it. Here the left
one says so: with attention both ways it knows the other, and a text needs no end to lean on.

Shape suffixes: M rows, W width, C counts from 0.
"""

from __future__ import annotations

import torch
from torch import nn


class Edits(nn.Module):
    """How many tokens are missing behind a token, and does it belong?"""

    def __init__(self, width: int, num_counts: int) -> None:
        super().__init__()
        self.insertion = nn.Linear(width, num_counts)
        self.deletion = nn.Linear(width, 1)

    def forward(self, hidden_MW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits: [M, C] of the missing tokens' number, the last being so many or more, and
        [M] of the token not belonging where it is."""
        deletions_M = self.deletion(hidden_MW)[:, 0]
        return self.insertion(hidden_MW).float(), deletions_M.float()

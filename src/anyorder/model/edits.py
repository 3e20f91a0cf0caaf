"""What a text lacks and what it has too much: two of the Levenshtein Transformer's three heads.

arXiv 1905.11006; the third, which fills placeholders in, is the network's ordinary head. As there,
a gap's two neighbours side by side tell how many tokens are missing in it. Behind a text's last
token there is nothing to read, so that a text needs no end to lean on.

Shape suffixes: M rows, W width, C counts from 0.
"""

from __future__ import annotations

import torch
from torch import nn


class Edits(nn.Module):
    """How many tokens are missing behind a token, and does it belong?"""

    def __init__(self, width: int, num_counts: int) -> None:
        super().__init__()
        self.insertion = nn.Linear(2 * width, num_counts)
        self.deletion = nn.Linear(width, 1)

    def forward(
        self, hidden_MW: torch.Tensor, behind_MW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 logits: [M, C] of how many tokens are missing between two that stand side by side
        (zeros: nothing is there), the last being so many or more, and [M] of the first one not
        belonging where it is."""
        insertions_MC = self.insertion(torch.cat((hidden_MW, behind_MW), dim=1))
        return insertions_MC.float(), self.deletion(hidden_MW)[:, 0].float()

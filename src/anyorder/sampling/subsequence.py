"""Longest common subsequences of many rows at once: what is left of each if the least is taken out.

Rows are packed: tokens go together where their groups are equal, and groups stand in one order in
both texts, so that each group's subsequence is its own. Dynamic programming (Wagner and Fischer,
1974), a step for each token, over all rows.

Shape suffixes: B rows, T tokens each.
"""

from __future__ import annotations

import torch


def common_subsequence(
    texts_BT: torch.Tensor, goals_BT: torch.Tensor, groups_BT: torch.Tensor
) -> torch.Tensor:
    """bool [B, T]: tokens of the texts that stay, as many as can, so that what stays of each group
    stands in the goal's same group, in that order. Of several choices the one whose last token is
    earliest, then the one before it, and so on."""
    num_rows, length = texts_BT.shape
    # lengths[i][b, j]: of the longest one of the first i tokens of the text and j of the goal.
    before_BT = torch.zeros(num_rows, length + 1, dtype=torch.int32, device=texts_BT.device)
    lengths, equals = [before_BT], []
    for place in range(length):
        here = slice(place, place + 1)
        equal_BT = (texts_BT[:, here] == goals_BT) & (groups_BT[:, here] == groups_BT)
        after_BT = before_BT.clone()
        after_BT[:, 1:] = torch.maximum(before_BT[:, 1:], before_BT[:, :-1] + equal_BT)
        # The longest for some goal's beginning is at least as long for any longer one.
        before_BT = after_BT.cummax(dim=1).values
        lengths.append(before_BT)
        equals.append(equal_BT)
    stays_BT = torch.zeros_like(texts_BT, dtype=torch.bool)
    ends_B1 = torch.full((num_rows, 1), length, device=texts_BT.device)
    places_T = torch.arange(length, device=texts_BT.device)
    for place in reversed(range(length)):
        longer_B1 = lengths[place + 1].gather(1, ends_B1) > lengths[place].gather(1, ends_B1)
        stays_BT[:, place] = longer_B1[:, 0]
        # It may as well go with its last equal in what is left of the goal.
        open_BT = equals[place] & (places_T < ends_B1)
        last_B1 = torch.where(open_BT, places_T, -1).amax(dim=1, keepdim=True)
        ends_B1 = torch.where(longer_B1, last_B1, ends_B1)
    return stays_BT

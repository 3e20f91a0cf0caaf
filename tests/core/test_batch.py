"""The packed batch's one computed property."""

from __future__ import annotations

import torch

from anyorder.core.batch import AttentionGroup


def test_a_groups_rows_lie_one_behind_the_other() -> None:
    group = AttentionGroup(
        first_row=5,
        num_requests=3,
        num_queries=2,
        pages_RP=None,
        query_positions_RQ=torch.zeros(3, 2),
        key_positions_RK=torch.zeros(3, 2),
        visible_RQK=None,
    )
    assert list(range(20))[group.rows] == [5, 6, 7, 8, 9, 10]
    assert group.masks == {}

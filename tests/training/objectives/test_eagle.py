"""What EAGLE's steps keep for each other, as passes without gradients read it."""

from __future__ import annotations

import pytest
import torch

from anyorder.model.backends import native
from anyorder.model.backends.native import attention as kernels
from anyorder.model.backends.sdpa import Pattern
from anyorder.training.objectives.eagle import _Kept, _step


@pytest.mark.skipif(native.library() is None, reason="the kernels are not built here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_read_all_steps(dtype: torch.dtype) -> None:
    """Two sequences of several documents, against attention by its definition in float32."""
    rng = torch.Generator().manual_seed(0)
    reads_BT = torch.zeros(2, 6, dtype=torch.long)
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1]])
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 0]])
    kept, pattern = _Kept(2), Pattern(scale=0.2)
    all_keys, all_values = torch.empty(2, 0, 4, 32), torch.empty(2, 0, 4, 32)
    for step in range(3):
        batch = _step(step, reads_BT, documents_BT, positions_BT, torch.zeros(2, 6, 4))
        (group,), slots_N = batch.groups, batch.slots_N
        assert slots_N is not None and group.visible_RQK is not None
        queries, keys, values = (
            torch.randn(12, heads, 32, generator=rng).to(dtype) for heads in (4, 2, 2)
        )
        kept.write(0, slots_N, keys, values)
        with torch.no_grad():
            assert kernels.takes(queries, group, pattern)
            found = kernels.attend(queries, group, batch, kept, 0, pattern)
        new_keys, new_values = (
            new.float().view(2, 6, 2, 32).repeat_interleave(2, dim=2) for new in (keys, values)
        )
        all_keys = torch.cat((all_keys, new_keys), dim=1)
        all_values = torch.cat((all_values, new_values), dim=1)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries.float().view(2, 6, 4, 32), all_keys) * 0.2
        scores = scores.masked_fill(~group.visible_RQK[:, None], -torch.inf)
        expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), all_values).reshape(12, 128)
        real = documents_BT.flatten() >= 0
        atol = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.float()[real], expected[real], atol=atol, rtol=0)

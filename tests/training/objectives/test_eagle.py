"""What EAGLE's steps keep for each other, as passes without gradients read it."""

from __future__ import annotations

import pytest
import torch

from anyorder.model.backends import native, sdpa
from anyorder.model.backends.native import attention as kernels
from anyorder.model.backends.sdpa import Pattern
from anyorder.training.objectives.eagle import _Kept, _step


@pytest.mark.skipif(native.library() is None, reason="the kernels are not built here")
@pytest.mark.parametrize("values_dtype", [torch.float32, torch.bfloat16])
def test_kernels_read_all_steps(values_dtype: torch.dtype) -> None:
    """Two sequences of several documents; autocast leaves values in another type than keys."""
    rng = torch.Generator().manual_seed(0)
    reads_BT = torch.zeros(2, 6, dtype=torch.long)
    documents_BT = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, -1]])
    positions_BT = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 0]])
    kept, pattern = _Kept(2), Pattern(scale=0.2)
    for step in range(3):
        batch = _step(step, reads_BT, documents_BT, positions_BT, torch.zeros(2, 6, 4))
        (group,), slots_N = batch.groups, batch.slots_N
        assert slots_N is not None
        queries, keys = torch.randn(12, 4, 32, generator=rng), torch.randn(12, 2, 32, generator=rng)
        values = torch.randn(12, 2, 32, generator=rng).to(values_dtype)
        kept.write(0, slots_N, keys, values)
        with torch.no_grad():
            assert kernels.takes(queries, group, pattern)
            found = kernels.attend(queries, group, batch, kept, 0, pattern)
        # Torch's attention wants one type.
        exact = _Exact(kept)
        expected = sdpa.attend(queries, keys, values.float(), group, exact, 0, pattern)
        real = documents_BT.flatten() >= 0
        torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=0)


class _Exact(_Kept):
    """The same in float32."""

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept

    def read(self, layer: int, pages_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.kept.read(layer, pages_RP)
        return keys, values.float()

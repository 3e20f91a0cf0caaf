"""Keys and values of 8 bits, against numbers that are rounded here by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool

SHAPES = [(2, 64), (1, 32)]


def make(kind: type[Pool] = Int8Pool, dtype: torch.dtype = torch.float32) -> Pool:
    device = torch.device("cpu")
    return kind(SHAPES, num_pages=6, page_size=4, dtype=dtype, device=device)


def draw(num: int, layer: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *SHAPES[layer], generator=generator)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Each head to multiples of its largest size / 127."""
    numbers = x.numpy().astype(np.float32)
    steps = (np.abs(numbers).max(-1, keepdims=True) / np.float32(127)).astype(np.float32)
    units = np.rint(numbers / np.where(steps == 0, np.float32(1), steps)).astype(np.float32)
    return torch.from_numpy(units * steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layer", [0, 1])
def test_what_is_read_is_what_was_written_in_127_steps(dtype: torch.dtype, layer: int) -> None:
    pool = make(dtype=dtype)
    keys, values = draw(8, layer).to(dtype), 100 * draw(8, layer, seed=1).to(dtype)
    keys[3] = 0
    slots = torch.tensor([8, 9, 10, 11, 20, 21, 22, 23])
    as_read = pool.write(layer, slots, keys, values)
    read = pool.read(layer, torch.tensor([[2, 5]]))
    for new, returned, found in zip((keys, values), as_read, read, strict=True):
        assert found.dtype == dtype
        assert torch.equal(found[0], returned)
        assert torch.equal(returned, rounded(new.float()).to(dtype))
        largest = new.abs().amax(-1, keepdim=True).float()
        assert (
            (returned - new).float().abs() <= largest / 253 + torch.finfo(dtype).eps * largest
        ).all()


def test_a_token_is_stored_alike_in_any_company() -> None:
    together, alone = make(), make()
    keys, values = draw(8, 0), draw(8, 0, seed=1)
    together.write(0, torch.arange(8), keys, values)
    for n in range(8):
        alone.write(0, torch.tensor([n]), keys[n : n + 1], values[n : n + 1])
    pages = torch.tensor([[0, 1]])
    for a, b in zip(together.read(0, pages), alone.read(0, pages), strict=True):
        assert torch.equal(a, b)


def test_memory_is_a_quarter_of_float32_and_about_half_of_bfloat16() -> None:
    sizes = {}
    for kind, dtype in [
        (Int8Pool, torch.float32),
        (Pool, torch.float32),
        (Pool, torch.bfloat16),
    ]:
        pool = make(kind, dtype)
        num_bytes = sum(tensor.nbytes for tensor in pool.tensors())
        assert num_bytes == 7 * 4 * kind.bytes_per_token(SHAPES, dtype)
        sizes[kind, dtype] = num_bytes
    ratio = sizes[Int8Pool, torch.float32] / sizes[Pool, torch.float32]
    assert ratio == pytest.approx((2 * 68 + 36) / (2 * 256 + 128))
    assert sizes[Int8Pool, torch.float32] < 0.55 * sizes[Pool, torch.bfloat16]


def test_a_number_that_is_none_stays_none() -> None:
    pool = make()
    keys = draw(1, 0)
    keys[0, 1, 5] = torch.nan
    found, _ = pool.write(0, torch.tensor([0]), keys, keys)
    assert found[0, 1].isnan().all() and not found[0, 0].isnan().any()

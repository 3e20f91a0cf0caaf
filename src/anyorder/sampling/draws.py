"""Random numbers that depend on a request's seed and a counter key only, and draws with them.

Counter-based generation after Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011),
with BLAKE2b as the keyed function: no state, so a token does not depend on its neighbours in the
batch, on how often the request was preempted, on the device or on torch's version.

Shape suffixes: M rows, V vocabulary (or a part of it), U weights of all rows, B blocks of a row,
N numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence as Seq
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_BLOCK = 256


def uniform(seed: int, *key: int) -> float:
    """A number in [0, 1), one of 2**53 equally likely ones; the same for the same seed and key.

    Seed and key are integers of 64 bits with sign.
    """
    packed = struct.pack(f"<{len(key) + 1}q", seed, *key)
    word = int.from_bytes(blake2b(packed, digest_size=8).digest(), "little")
    return (word >> 11) * 2.0**-53


def uniforms(num: int, keys: Seq[Seq[int]]) -> NDArray[np.float64]:
    """[M, num] such numbers, a row for each seed and key, independent of each other and of
    `uniform`'s.

    Philox with the hash as its key: numpy keeps what its bit generators give. Each row is one call
    of its compiled loop; the ten rounds as operations on whole arrays take four times as long.
    """
    words_MN = np.empty((len(keys), num), dtype=np.uint64)
    for words_N, key in zip(words_MN, keys, strict=True):
        packed = struct.pack(f"<{len(key)}q", *key)
        hashed = int.from_bytes(blake2b(packed, digest_size=16, person=b"many").digest(), "little")
        words_N[:] = np.random.Philox(key=hashed).random_raw(num)
    words_MN >>= np.uint64(11)
    numbers_MN: NDArray[np.float64] = words_MN.astype(np.float64)
    numbers_MN *= 2.0**-53
    return numbers_MN


def draw(weights_V: NDArray[Any], uniform: float) -> int:
    """The index at which the running sum of `weights_V`, divided by the sum, passes `uniform`.

    Weights are float64, none negative, not all zero. A weight of zero is never drawn.
    """
    # Sums of blocks first: a running sum over the whole vocabulary cannot be vectorised.
    whole = len(weights_V) // _BLOCK * _BLOCK
    sums = weights_V[:whole].reshape(-1, _BLOCK).sum(1)
    if whole < len(weights_V):
        sums = np.append(sums, weights_V[whole:].sum())
    ends = sums.cumsum()
    target = uniform * ends[-1]
    block = _passes(ends, sums, target)
    before = ends[block - 1] if block else 0.0
    inside = weights_V[block * _BLOCK : (block + 1) * _BLOCK]
    return block * _BLOCK + _passes(inside.cumsum(), inside, target - before)


def _passes(ends: NDArray[Any], parts: NDArray[Any], target: float) -> int:
    """First index whose running sum exceeds `target`; rounding may leave none, then the last
    index that has any mass."""
    index = int(ends.searchsorted(target, side="right"))
    return index if index < len(ends) else int(parts.nonzero()[0][-1])


def draw_rows(
    weights_U: NDArray[Any], lengths_M: NDArray[Any], uniforms_M: NDArray[Any]
) -> NDArray[np.int64]:
    """`draw` for many rows of different lengths at once, the same index for each; `weights_U` holds
    their weights one row behind the other, and no row is empty."""
    num_rows, num_blocks = len(lengths_M), -(-int(lengths_M.max()) // _BLOCK)
    rows_M = np.arange(num_rows)
    # A zero before every block: what is added to it is then summed like a block of its own.
    padded_MBV = np.zeros((num_rows, num_blocks, 1 + _BLOCK))
    is_weight_MU = np.arange(num_blocks * _BLOCK) < lengths_M[:, None]
    padded_MBV[:, :, 1:][is_weight_MU.reshape(num_rows, num_blocks, _BLOCK)] = weights_U
    parts_MBV = padded_MBV[:, :, 1:]
    sizes_MB = is_weight_MU.reshape(num_rows, num_blocks, _BLOCK).sum(2)
    starts_MB = np.arange(num_rows * num_blocks).reshape(num_rows, -1) * (1 + _BLOCK)
    bounds = np.stack([starts_MB, starts_MB + 1 + sizes_MB], axis=-1).ravel()
    flat = np.append(padded_MBV.ravel(), 0.0)
    sums_MB = np.add.reduceat(flat, bounds)[::2].reshape(num_rows, num_blocks)
    ends_MB = sums_MB.cumsum(axis=1)
    targets_M = uniforms_M * ends_MB[:, -1]
    blocks_M = _first_passing(ends_MB, sums_MB, targets_M)
    before_M = np.where(blocks_M > 0, ends_MB[rows_M, blocks_M - 1], 0.0)
    inside_MV = parts_MBV[rows_M, blocks_M]
    places_M = _first_passing(inside_MV.cumsum(axis=1), inside_MV, targets_M - before_M)
    chosen_M: NDArray[np.int64] = blocks_M * _BLOCK + places_M
    return chosen_M


def _first_passing(
    ends_MN: NDArray[Any], parts_MN: NDArray[Any], targets_M: NDArray[Any]
) -> NDArray[np.int64]:
    """`_passes` for many rows."""
    width = parts_MN.shape[1]
    index_M = (ends_MN <= targets_M[:, None]).sum(axis=1)
    last_M = width - 1 - (parts_MN[:, ::-1] > 0).argmax(axis=1)
    chosen_M: NDArray[np.int64] = np.where(index_M < width, index_M, last_M)
    return chosen_M


def draw_on_device(scores_MV: torch.Tensor, uniforms_M: torch.Tensor) -> torch.Tensor:
    """`draw` for many rows at once, on their device; int64 [M]. `uniforms_M` is float64."""
    import torch

    weights_MV = torch.softmax(scores_MV, dim=-1, dtype=torch.float64)
    ends_MV = weights_MV.cumsum(-1)
    targets_M1 = (uniforms_M * ends_MV[:, -1])[:, None]
    tokens_M = torch.searchsorted(ends_MV, targets_M1, right=True)[:, 0]
    ids_V = torch.arange(scores_MV.shape[1], device=scores_MV.device)
    last_M = torch.where(weights_MV > 0, ids_V, 0).amax(-1)
    return torch.minimum(tokens_M, last_M)

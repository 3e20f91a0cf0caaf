"""Random numbers that depend on a request's seed and a counter key only, and draws with them.

Counter-based generation after Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011),
with BLAKE2b as the keyed function: no state, so a token does not depend on its neighbours in the
batch, on how often the request was preempted, on the device or on torch's version.

Shape suffixes: M rows, V vocabulary (or a part of it).
"""

from __future__ import annotations

import struct
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


def uniforms(num: int, seed: int, *key: int) -> NDArray[np.float64]:
    """Many such numbers for one seed and key, independent of each other and of `uniform`'s.

    Philox with the hash as its key: numpy keeps what its bit generators give.
    """
    packed = struct.pack(f"<{len(key) + 1}q", seed, *key)
    hashed = int.from_bytes(blake2b(packed, digest_size=16, person=b"many").digest(), "little")
    words = np.random.Philox(key=hashed).random_raw(num)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


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

"""Stored number formats of GGUF files, and their way back to floating point.

Q4_0, Q4_1 and Q8_0 are decoded by the package's kernels, or else here in cache-sized pieces,
several times faster than by the `gguf` library and equal to it bit for bit (products of a half and
a small integer are exact in float32). All other block formats go through `gguf.quants`.

Does not quantise, and does not compute on quantised weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing
    import torch

    Bytes = numpy.typing.NDArray[numpy.uint8]
    Floats = numpy.typing.NDArray[numpy.float32]


@dataclass(frozen=True)
class StorageType:
    """One number format: `block_bytes` bytes hold `block_size` numbers."""

    name: str
    block_size: int
    block_bytes: int


TYPES: dict[int, StorageType] = {
    number: StorageType(*facts)
    for number, facts in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
    }.items()
}
"""By the number that stands in the file."""

_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
_NEVER_STORED = ("Q8_1", "Q8_K", "Q1_0")
"""Formats without a decoder: the first two only occur inside kernels, the third is too new."""
READABLE = tuple(t.name for t in TYPES.values() if t.name not in _NEVER_STORED)

_BLOCKS_AT_A_TIME = 1023
"""Stays in the cache between the steps of decoding, and below the size at which torch would share a
step among threads: waiting for each other costs more than it brings, and very much on a busy
machine."""


def decode(
    raw: torch.Tensor,
    type_name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a tensor's bytes (uint8, one dimension) to a tensor of `shape` and `dtype`.

    `type_name` must be one of READABLE, and the number of bytes must fit the shape. Numbers are
    computed in float32 and then rounded to `dtype`. The formats decoded here are written straight
    into `out` (contiguous, of `dtype`) if it is given: fresh memory costs more than decoding.
    """
    import numpy
    import torch

    from anyorder.model.backends import native

    if type_name in _PLAIN:
        stored = raw.clone().view(getattr(torch, _PLAIN[type_name]))  # clone: aligned and ours
        return stored.to(torch.float32).to(dtype).view(shape)
    with numpy.errstate(all="ignore"):  # damaged scales give inf or nan, not a warning
        if type_name not in _FAST:
            return _through_library(raw, type_name, shape).to(dtype)
        if native.level() >= native.QUANTIZED_LEVEL and dtype in native.NAMES:
            whole = torch.empty(shape, dtype=dtype) if out is None else out
            native.expand(raw, type_name, whole)
            return whole.view(shape)
        decode_blocks, block_bytes = _FAST[type_name]
        blocks = raw.numpy().reshape(-1, block_bytes)
        decoded = torch.empty(blocks.shape[0], 32, dtype=dtype) if out is None else out.view(-1, 32)
        scratch = torch.empty(_BLOCKS_AT_A_TIME, 32)
        for start in range(0, blocks.shape[0], _BLOCKS_AT_A_TIME):
            piece = blocks[start : start + _BLOCKS_AT_A_TIME]
            out = decoded[start : start + piece.shape[0]]
            plain = out if dtype == torch.float32 else scratch[: piece.shape[0]]
            decode_blocks(piece, plain.numpy())
            if plain is not out:
                out.copy_(plain)
        return decoded.view(shape)


def _halves(columns: Bytes) -> Floats:
    return columns.copy().view("<f2").astype("<f4")


def _decode_q8_0(blocks: Bytes, out: Floats) -> None:
    """Block: scale (half), 32 signed bytes."""
    out[:] = blocks[:, 2:].view("i1")
    out *= _halves(blocks[:, :2])


def _decode_q4_0(blocks: Bytes, out: Floats) -> None:
    """Block: scale (half), 16 bytes whose low halves are numbers 0-15, high halves 16-31."""
    _unpack_nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _halves(blocks[:, :2])


def _decode_q4_1(blocks: Bytes, out: Floats) -> None:
    """Block: scale and minimum (halves), 16 bytes as in Q4_0."""
    _unpack_nibbles(blocks[:, 4:], out)
    scale_and_minimum = _halves(blocks[:, :4])
    out *= scale_and_minimum[:, :1]
    out += scale_and_minimum[:, 1:]


def _unpack_nibbles(packed: Bytes, out: Floats) -> None:
    packed = packed.copy()  # contiguous: faster to walk twice
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4


_FAST: dict[str, tuple[Callable[[Bytes, Floats], None], int]] = {
    "Q4_0": (_decode_q4_0, 18),
    "Q4_1": (_decode_q4_1, 20),
    "Q8_0": (_decode_q8_0, 34),
}


def _through_library(raw: torch.Tensor, type_name: str, shape: tuple[int, ...]) -> torch.Tensor:
    import numpy
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = raw.numpy().reshape(math.prod(shape[:-1]), -1)
    decoded = dequantize(rows, GGMLQuantizationType[type_name])
    return torch.from_numpy(numpy.ascontiguousarray(decoded)).view(shape)

"""The package's own compiled kernels, where they were built and the processor has what they need.

`kernels.cpp` is built when the package is installed, if there is a C++ compiler, and called through
ctypes: the library knows nothing of Python or torch, so one build fits every version of both.
Without it everything runs on torch alone, with the same results up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util

import torch

LEVELS = ("none", "AVX2", "AVX-512", "AVX-512 with VNNI", "AVX-512 with VNNI and bfloat16")
"""What `level` returns, by number: the instruction set that is used."""
QUANTIZED_LEVEL = 3
"""The lowest with kernels for quantised weights."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Types that the kernels compute in, as their functions' names end."""
FORMATS = {"F32": 0, "Q4_0": 1, "Q4_1": 2, "Q8_0": 3}
"""How rows may lie in a file that `pack` reads, as GGUF calls them."""


class Matrix(ctypes.Structure):
    """`Matrix` of layers.h: the weights of a linear layer."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "bias")),
        *((name, ctypes.c_int64) for name in ("bits", "outputs", "width")),
    ]


def plain_matrix(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> Matrix:
    """A view of weights that are not quantised, which must outlive it."""
    outputs, width = weight_OI.shape
    return Matrix(
        values=weight_OI.data_ptr(),
        bias=None if bias_O is None else bias_O.data_ptr(),
        outputs=outputs,
        width=width,
    )


def multiply(matrix: Matrix, x_NI: torch.Tensor) -> torch.Tensor:
    """x W^T + b, [N, O]; `x_NI` has rows without gaps and a type of `NAMES`."""
    kernels = library()
    assert kernels is not None, "callers ask for the library first"
    out_NO = x_NI.new_empty(x_NI.shape[0], matrix.outputs)
    function = getattr(kernels, f"anyorder_linear_{NAMES[x_NI.dtype]}")
    function(
        ctypes.byref(matrix),
        x_NI.data_ptr(),
        out_NO.data_ptr(),
        x_NI.shape[0],
        x_NI.stride(0),
        torch.get_num_threads(),
    )
    return out_NO


def pack(rows_OB: torch.Tensor, file_format: str, first: int, matrix: Matrix) -> None:
    """Put rows, bytes of one of `FORMATS`, into a quantised matrix's outputs from `first` on."""
    kernels = library()
    assert kernels is not None, "callers ask for the library first"
    function = kernels.anyorder_pack
    number, size = FORMATS[file_format], rows_OB.stride(0)
    target, threads = ctypes.byref(matrix), torch.get_num_threads()
    function(number, rows_OB.data_ptr(), size, len(rows_OB), first, target, threads)


def expand(raw: torch.Tensor, file_format: str, out: torch.Tensor) -> None:
    """Bytes in one of `FORMATS` as numbers of a type of `NAMES`; both without gaps."""
    kernels = library()
    assert kernels is not None, "callers ask for the library first"
    function = getattr(kernels, f"anyorder_expand_{NAMES[out.dtype]}")
    number, threads = FORMATS[file_format], torch.get_num_threads()
    function(number, raw.data_ptr(), out.numel() // 32, out.data_ptr(), threads)


def unpack(matrix: Matrix, outputs_N: torch.Tensor) -> torch.Tensor:
    """The weights [N, I] of some outputs of a matrix of 8 bits, float32."""
    kernels = library()
    assert kernels is not None, "callers ask for the library first"
    weights_NI = torch.empty(len(outputs_N), matrix.width)
    places = outputs_N.data_ptr()
    kernels.anyorder_unpack(ctypes.byref(matrix), places, len(outputs_N), weights_NI.data_ptr())
    return weights_NI


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where they were not built or cannot run."""
    # Loaded after torch, whose OpenMP threads it shares.
    found = importlib.util.find_spec("anyorder.model.backends.native._kernels")
    if found is None or found.origin is None:
        return None
    kernels = ctypes.CDLL(found.origin)
    kernels.anyorder_level.argtypes = []
    kernels.anyorder_set_level.argtypes = [ctypes.c_int]
    numbers = [ctypes.c_int64] * 3
    pointer = ctypes.c_void_p
    kernels.anyorder_pack.argtypes = [ctypes.c_int64, pointer, *numbers, pointer, ctypes.c_int64]
    kernels.anyorder_unpack.argtypes = [pointer, pointer, ctypes.c_int64, pointer]
    kernels.anyorder_pack.restype = kernels.anyorder_unpack.restype = None
    for name in NAMES.values():
        linear = getattr(kernels, f"anyorder_linear_{name}")
        expand = getattr(kernels, f"anyorder_expand_{name}")
        expand.argtypes = [ctypes.c_int64, pointer, ctypes.c_int64, pointer, ctypes.c_int64]
        linear.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
        layers = getattr(kernels, f"anyorder_layers_{name}")
        layers.argtypes = [pointer]
        attention = getattr(kernels, f"anyorder_attention_{name}")
        attention.argtypes = [pointer, pointer, ctypes.c_int64, pointer]
        linear.restype = layers.restype = expand.restype = attention.restype = None
    return kernels if kernels.anyorder_level() else None


def level() -> int:
    """Which of `LEVELS` is used."""
    kernels = library()
    return 0 if kernels is None else int(kernels.anyorder_level())

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

LEVELS = ("none", "AVX2", "AVX-512", "AVX-512 with bfloat16")
"""What `level` returns, by number: the instruction set that is used."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Types that the kernels compute in, as their functions' names end."""


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
    for name in NAMES.values():
        linear = getattr(kernels, f"anyorder_linear_{name}")
        linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 5
        layers = getattr(kernels, f"anyorder_layers_{name}")
        layers.argtypes = [ctypes.c_void_p]
        linear.restype = layers.restype = None
    return kernels if kernels.anyorder_level() else None


def level() -> int:
    """Which of `LEVELS` is used."""
    kernels = library()
    return 0 if kernels is None else int(kernels.anyorder_level())

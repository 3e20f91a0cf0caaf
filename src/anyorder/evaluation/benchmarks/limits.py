"""What the machine could do at most: memory bandwidth for decode, matrix peak for prefill.

Short measurements with torch, run in a process of its own:

    python -P limits.py THREADS BYTES ...

prints JSON: {"gigabytes_per_second": {bytes: rate}, "teraflops": {dtype: rate}}. Bandwidth is that
of reading a buffer of so many bytes over and over, best of several passes: what fits into a cache
is faster than memory, and a model as large as the buffer has the same advantage. The peak is the
best of square matrix products that are large enough to be bound by arithmetic.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

_SIDES = (1024, 2048)
_SECONDS = 1.0
"""Spent on each measurement, at least."""


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of many calls."""
    run()
    fastest, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def bandwidth(torch: Any, num_bytes: int) -> float:
    """Gigabytes read in a second."""
    # Eight rows for each thread: torch shares out rows of a reduction.
    rows = 8 * torch.get_num_threads()
    buffer = torch.ones(rows, num_bytes // 4 // rows)
    return float(buffer.numel()) * 4 / best(lambda: buffer.sum(dim=1)) / 1e9


def peak(torch: Any, dtype: str) -> float:
    """Tera-operations in a second, additions and multiplications counted."""
    rates = []
    for side in _SIDES:
        if dtype == "int8":
            a, b = (torch.ones(side, side, dtype=torch.int8) for _ in range(2))
            seconds = best(partial(torch._int_mm, a, b))
        else:
            a, b = (torch.ones(side, side, dtype=getattr(torch, dtype)) for _ in range(2))
            seconds = best(partial(torch.mm, a, b))
        rates.append(2 * side**3 / seconds / 1e12)
    return max(rates)


def main(threads: int, sizes: list[int]) -> dict[str, dict[str, float]]:
    """Everything."""
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    return {
        "gigabytes_per_second": {str(size): bandwidth(torch, size) for size in sizes},
        "teraflops": {dtype: peak(torch, dtype) for dtype in ("float32", "bfloat16", "int8")},
    }


if __name__ == "__main__":
    number, *buffers = map(int, sys.argv[1:])
    print(json.dumps(main(number, buffers)))

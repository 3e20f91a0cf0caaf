"""Attention of a whole pass in one call, against torch's group by group.

The kernels run here on a CPU under Triton's interpreter, which executes them operation by operation
on NumPy; that they compile for a GPU is tested, that they are right and fast on one is not.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyorder.cache.int8_pool import Int8Pool
from anyorder.cache.pool import Pool
from anyorder.core.attention import (
    CAUSAL,
    Attention,
    Bidirectional,
    Blocks,
    Groups,
    Tree,
)
from anyorder.core.batch import AttentionGroup, PackedBatch, RaggedRows
from anyorder.model.backends import ragged, sdpa
from anyorder.model.backends.sdpa import Pattern
from anyorder.model.settings import settings

has_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (pip install 'anyorder[gpu]', Linux only); without it there "
    "are no kernels for GPUs",
)
interpreted = pytest.mark.skipif(
    not settings().interprets_kernels,
    reason="runs in test_under_the_interpreter's process, where Triton is imported as interpreter",
)
PAGE, NUM_PAGES = 4, 40
REQUESTS: list[tuple[int, Attention, int]] = [
    (13, CAUSAL, 1),
    (0, CAUSAL, 9),
    (6, Tree(parents=(-1, 0, 0, 1, 2)), 5),
    (9, Blocks(size=2), 5),
    (0, Bidirectional(), 3),
    (22, Groups(ids=(0, 0, 1, 1, 0)), 5),
    (33, CAUSAL, 4),
]
"""Cached tokens, how new ones see each other, how many there are."""


def make(
    requests: list[tuple[int, Attention, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    width: int = 32,
    dtype: torch.dtype = torch.float32,
    kind: type[Pool] = Pool,
    window_from_start: bool = False,
) -> tuple[torch.Tensor, PackedBatch, list[AttentionGroup], Pool]:
    """Queries, the pass as ragged rows, and the same as groups."""
    generator = torch.Generator().manual_seed(0)
    place = {"page_size": PAGE, "device": torch.device("cpu"), "dtype": dtype}
    num_queries, num_keys = heads
    pool = kind([(num_keys, width)], num_pages=NUM_PAGES, **place)
    stored = torch.randn(NUM_PAGES * PAGE, 2 * num_keys, width, generator=generator).to(dtype)
    pool.write(0, torch.arange(NUM_PAGES * PAGE), *stored.split(num_keys, dim=1))
    scattered = iter(torch.randperm(NUM_PAGES, generator=generator).tolist())
    table = torch.full((len(requests) + 2, 16), pool.blank)
    rows, masks, groups, positions, slots = [], [], [], [], []
    first = num_told = 0
    for index, (past, attention, num) in enumerate(requests):
        num_pages = -(-(past + num) // PAGE)
        row = len(table) - 1 - index
        table[row, :num_pages] = torch.tensor(list(itertools.islice(scattered, num_pages)))
        own = past + torch.tensor(list(attention.depths(num)))
        places = torch.arange(past, past + num)
        slots.append(table[row, places // PAGE] * PAGE + places % PAGE)
        positions.append(own)
        visible = None if attention is CAUSAL else attention.visible(num)
        rows.append((first, num, past, row, -1 if visible is None else num_told))
        if visible is not None:
            masks.append(visible.flatten())
            num_told += num * num
        groups.append(
            AttentionGroup(
                first_row=first,
                num_requests=1,
                num_queries=num,
                pages_RP=table[:, :num_pages],
                page_rows_R=torch.tensor([row]),
                query_positions_RQ=own[None],
                key_positions_RK=None,
                window_positions_RQ=torch.full((1, num), past) if window_from_start else None,
                visible_RQK=None if visible is None else visible[None],
                past_R=None if visible is None else torch.tensor([past]),
            )
        )
        first += num
    starts = [
        torch.full_like(own, past) for own, (past, *_) in zip(positions, requests, strict=True)
    ]
    batch = PackedBatch(
        tokens_N=torch.zeros(first, dtype=torch.int64),
        positions_N=torch.cat(positions),
        slots_N=torch.cat(slots),
        groups=(),
        ragged=RaggedRows(
            requests_R5=torch.tensor(rows),
            pages_TP=table,
            visible_M=torch.cat([*masks, torch.zeros(1, dtype=torch.bool)]),
            window_positions_N=torch.cat(starts if window_from_start else positions),
            most_rows=max(num for *_, num in requests),
            most_keys=max(past + num for past, _, num in requests),
        ),
    )
    queries_NHD = torch.randn(first, num_queries, width, generator=generator).to(dtype)
    return queries_NHD, batch, groups, pool


def expected(
    queries_NHD: torch.Tensor, groups: list[AttentionGroup], pool: Pool, pattern: Pattern
) -> torch.Tensor:
    nothing = torch.empty(0)
    parts = []
    for group in groups:
        pool.prepare()
        parts.append(
            sdpa.attend(queries_NHD[group.rows], nothing, nothing, group, pool, 0, pattern)
        )
    return torch.cat(parts)


def check(made: Any, pattern: Pattern, **tolerance: float) -> None:
    queries_NHD, batch, groups, pool = made
    found = ragged.attend(queries_NHD, batch, pool, 0, pattern)
    torch.testing.assert_close(found, expected(queries_NHD, groups, pool, pattern), **tolerance)


PATTERNS = {
    "all": Pattern(scale=0.2),
    "window": Pattern(scale=0.2, window=6),
    "window ahead": Pattern(scale=0.2, window=3, window_ahead=True),
}


@interpreted
@pytest.mark.parametrize("name", PATTERNS)
def test_all_masks_of_a_ragged_batch_at_once(name: str) -> None:
    check(make(REQUESTS), PATTERNS[name])


@interpreted
def test_windows_from_where_a_canvas_begins() -> None:
    canvas = [(22, Bidirectional(), 5), (9, Bidirectional(), 3)]
    check(make(canvas, window_from_start=True), PATTERNS["window"])


@interpreted
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1), (3, 1)], ids=str)
def test_heads_that_share_keys(heads: tuple[int, int]) -> None:
    check(make(REQUESTS[2:4], heads=heads), PATTERNS["all"])


@interpreted
@pytest.mark.parametrize("width", [8, 80, 256])
def test_head_widths(width: int) -> None:
    check(make(REQUESTS[2:4], width=width), PATTERNS["all"])


@interpreted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    check(make(REQUESTS, dtype=dtype), PATTERNS["all"], rtol=2e-2, atol=2e-2)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_of_8_bits(dtype: torch.dtype) -> None:
    check(make(REQUESTS, dtype=dtype, kind=Int8Pool), PATTERNS["all"], rtol=2e-2, atol=2e-2)


@interpreted
@pytest.mark.parametrize("name", ["all", "window"])
def test_long_texts_in_stretches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over programs or added up within one: both as torch has it, and to the bit the same,
    as is a request without the others."""
    monkeypatch.setattr(ragged, "SPLIT", 16)
    monkeypatch.setattr(ragged, "KEYS", 16)
    queries_NHD, batch, _, pool = made = make(REQUESTS[4:], heads=(2, 1))
    check(made, PATTERNS[name])
    spread = ragged.attend(queries_NHD, batch, pool, 0, PATTERNS[name])
    monkeypatch.setattr(ragged, "MOST_SPREAD_ROWS", 0)
    check(made, PATTERNS[name])
    assert torch.equal(ragged.attend(queries_NHD, batch, pool, 0, PATTERNS[name]), spread)


def _in_order(a_MK: Any, b_KN: Any, dtype: Any = None) -> Any:
    return (a_MK[:, :, None] * b_KN[None]).sum(axis=1, dtype=dtype)


@interpreted
def test_a_row_does_not_depend_on_its_company_nor_on_how_its_text_was_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, but for NumPy, whose matrix products round by the matrix's height and by the
    processor; here it adds one column after the other."""
    monkeypatch.setattr(ragged, "LARGE", ragged.SMALL)
    monkeypatch.setattr(np, "matmul", _in_order)
    pattern = PATTERNS["all"]
    queries_NHD, batch, _, pool = make([(0, CAUSAL, 40), (13, CAUSAL, 2)])
    whole = ragged.attend(queries_NHD, batch, pool, 0, pattern)
    assert batch.ragged is not None and batch.slots_N is not None
    for first, stop in ((0, 7), (7, 8), (8, 40)):
        row = int(batch.ragged.requests_R5[0, 3])
        rows = RaggedRows(
            requests_R5=torch.tensor([(0, stop - first, first, row, -1)]),
            pages_TP=batch.ragged.pages_TP,
            visible_M=batch.ragged.visible_M,
            window_positions_N=batch.positions_N[first:stop],
            most_rows=stop - first,
            most_keys=stop,
        )
        part = types.SimpleNamespace(
            ragged=rows,
            slots_N=batch.slots_N[first:stop],
            positions_N=batch.positions_N[first:stop],
        )
        found = ragged.attend(queries_NHD[first:stop], part, pool, 0, pattern)  # type: ignore[arg-type]
        assert torch.equal(found, whole[first:stop])


@has_triton
@pytest.mark.skipif(settings().interprets_kernels, reason="it runs this file")
def test_under_the_interpreter() -> None:
    """Triton is its interpreter or it is not from the first import on: a process of its own."""
    root = Path(__file__).parents[2]
    tests = [__file__, str(root / "tests/engine/test_ragged.py::test_the_kernels_in_an_engine")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert not done.returncode and " passed" in done.stdout, done.stdout + done.stderr


@has_triton
@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True])
def test_the_kernels_compile_for_a_gpu(spread: bool) -> None:
    """Down to machine code for a Hopper GPU, with shapes of Llama 3, in a process without the
    interpreter."""
    program = f"""
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from anyorder.model.backends.ragged_kernels import add_up, read

def build(function, constants):
    pointers = {{"key_scales": "*fp32", "value_scales": "*fp32", "visible": "*i1", "scale": "fp32"}}
    pointers |= dict.fromkeys(["queries", "keys", "values", "mixed"], "*bf16")
    pointers |= dict.fromkeys(["partial_sums", "partial_peaks"], "*fp32")
    pointers |= dict.fromkeys(["requests", "pages", "slots"], "*i64")
    pointers |= dict.fromkeys(["positions", "window_positions"], "*i64")
    kinds = {{name: pointers.get(name, "i32") for name in function.arg_names}}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=function, signature=kinds, constexprs=constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

sizes = {{"HEADS": 32, "WIDTH": 128, "PADDED_WIDTH": 128}}
kind = {{"IS_SPREAD": {spread}, "HAS_WINDOW": {spread}, "LOOKS_AHEAD": {spread}}}
kind |= {{"IS_INT8": {spread}, "QUERIES": {4 if spread else 16}}}
build(read, {{**sizes, **kind, "PAGE": 16, "KEY_HEADS": 8, "SHARING": 4, "KEYS": 64, "SPLIT": 512,
             "WIDENS": False}})
if {spread}:
    build(add_up, sizes)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=250)

# mypy: ignore-errors
# Triton's language: its functions are compiled from source and have no types of Python's.
"""The kernels of `ragged`: attention with a running softmax over pages (arXiv 2205.14135), keys of
long texts in stretches that are added up after (arXiv 2311.01282).

One program answers a block of queries of one request for the query heads that share a key head, so
that keys are read once for all of them. Which block of which request it is, it finds in the table
of requests. Scores and sums are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _nothing(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The sums over no keys: the highest score, the weights, the weighted values."""
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    return peak, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def _merge(peak, total, sums, other_peak, other_total, other_sums):
    """Sums over some keys and over others, as sums over both."""
    highest = tl.maximum(peak, other_peak)
    finite = tl.where(highest == float("-inf"), 0.0, highest)
    mine, others = tl.exp2(peak - finite), tl.exp2(other_peak - finite)
    total = total * mine + other_total * others
    sums = sums * mine[:, None] + other_sums * others[:, None]
    return highest, total, sums


@triton.jit
def _product(left, right, WIDENS: tl.constexpr):
    """Of matrices, in float32. `WIDENS`: Triton's interpreter takes bfloat16 for integers here."""
    if WIDENS:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def _request_of(block, requests, num_requests, QUERIES: tl.constexpr):
    """The request that a block of queries belongs to: the last that begins at it or before."""
    low = num_requests * 0
    high = num_requests
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(requests + middle * 5) // QUERIES + middle <= block
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    return low


@triton.jit
def _stored(
    pointers,
    scales,
    like,
    place_K,
    width_D,
    there_K,
    inside_D,
    WIDTH: tl.constexpr,
    IS_INT8: tl.constexpr,
):
    """Some keys' numbers, or values, of the type of `like`."""
    found_KD = tl.load(
        pointers + place_K[:, None] * WIDTH + width_D,
        mask=there_K[:, None] & inside_D,
        other=0,
    )
    if IS_INT8:
        scale_K = tl.load(scales + place_K, mask=there_K, other=0.0)
        found_KD = (found_KD.to(tl.float32) * scale_K[:, None]).to(like.dtype)
    return found_KD


@triton.jit
def _slots(own_pages, own_slots, past, key_K, there_K, PAGE: tl.constexpr):
    """Where keys lie: cached ones in the request's pages, new ones where they were put."""
    is_new_K = key_K >= past
    page_K = tl.load(own_pages + key_K // PAGE, mask=there_K & ~is_new_K, other=0)
    slot_K = tl.load(own_slots + key_K - past, mask=there_K & is_new_K, other=0)
    return tl.where(is_new_K, slot_K, page_K * PAGE + key_K % PAGE)


@triton.jit
def _seen(visible, mask_start, key_K, query_R, past, num, there_K, there_R):
    """Which keys queries see, windows aside."""
    seen_RK = there_R[:, None] & there_K
    if mask_start < 0:
        seen_RK = seen_RK & (key_K[None, :] <= past + query_R[:, None])
    else:
        bit_RK = mask_start + query_R[:, None] * num + (key_K - past)[None, :]
        told_RK = seen_RK & (key_K >= past)[None, :]
        seen_RK = seen_RK & (tl.load(visible + bit_RK, mask=told_RK, other=1) != 0)
    return seen_RK


@triton.jit
def _near(from_R, at_R, at_K, window, LOOKS_AHEAD: tl.constexpr):
    """Which keys are within the window."""
    near_RK = from_R[:, None] - at_K[None, :] < window
    if LOOKS_AHEAD:
        near_RK = near_RK & (at_R[:, None] - at_K[None, :] > -window)
    return near_RK


@triton.jit
def _add(peak_R, total_R, sums_RD, score_RK, value_KD, WIDENS: tl.constexpr):
    """Sums, and some keys' values by the weights that follow from their scores."""
    higher_R = tl.maximum(peak_R, tl.max(score_RK, 1))
    finite_R = tl.where(higher_R == float("-inf"), 0.0, higher_R)
    weight_RK = tl.exp2(score_RK - finite_R[:, None])
    shrink_R = tl.exp2(peak_R - finite_R)
    read_RD = _product(weight_RK.to(value_KD.dtype), value_KD, WIDENS)
    total_R = total_R * shrink_R + tl.sum(weight_RK, 1)
    return higher_R, total_R, sums_RD * shrink_R[:, None] + read_RD


# Counts change from pass to pass: no variants of the kernels for 1 or multiples of 16.
# fmt: off
@triton.jit(do_not_specialize=["num_requests", "num_rows", "window", "num_splits"])
def read(
    queries, keys, values, key_scales, value_scales, requests, pages, slots, positions,
    window_positions, visible, mixed, partial_sums, partial_peaks,
    num_requests, num_rows, query_stride, page_stride, scale, window, num_splits,
    PAGE: tl.constexpr, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, SHARING: tl.constexpr,
    WIDTH: tl.constexpr, PADDED_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    SPLIT: tl.constexpr, IS_SPREAD: tl.constexpr, HAS_WINDOW: tl.constexpr,
    LOOKS_AHEAD: tl.constexpr, IS_INT8: tl.constexpr, WIDENS: tl.constexpr,
):
    # fmt: on
    """`num_splits` stretches of keys from the program's own on, added up in order."""
    ROWS: tl.constexpr = QUERIES * SHARING
    block, key_head, first_split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    request = _request_of(block, requests, num_requests, QUERIES)
    first = tl.load(requests + request * 5)
    num = tl.load(requests + request * 5 + 1)
    past = tl.load(requests + request * 5 + 2)
    own_pages = pages + tl.load(requests + request * 5 + 3) * page_stride
    mask_start = tl.load(requests + request * 5 + 4)
    first_query = (block - first // QUERIES - request) * QUERIES
    if first_query >= num:
        return
    query_R = first_query + tl.arange(0, ROWS) // SHARING
    shared_R = tl.arange(0, ROWS) % SHARING
    head_R = key_head * (HEADS // KEY_HEADS) + shared_R
    there_R = (query_R < num) & (shared_R < HEADS // KEY_HEADS)
    width_D = tl.arange(0, PADDED_WIDTH)
    inside_D = width_D < WIDTH
    of_query_RD = (first + query_R)[:, None] * query_stride + head_R[:, None] * WIDTH + width_D
    query_RD = tl.load(queries + of_query_RD, mask=there_R[:, None] & inside_D, other=0.0)

    num_keys = past + tl.where(mask_start < 0, tl.minimum(first_query + QUERIES, num), num)
    begin = first_split.to(tl.int64) * SPLIT
    end = tl.minimum(begin + num_splits * SPLIT, num_keys)
    if HAS_WINDOW:
        from_R = tl.load(window_positions + first + query_R, mask=there_R, other=0)
        at_R = tl.load(positions + first + query_R, mask=there_R, other=0)
        # Blocks of cached keys that nobody sees any more are not read.
        nearest = tl.min(tl.where(there_R, from_R, num_keys)) - window + 1
        begin = tl.maximum(begin, tl.maximum(tl.minimum(nearest, past), 0) // KEYS * KEYS)

    peak_R, total_R, sums_RD = _nothing(ROWS, PADDED_WIDTH)
    while begin < end:
        stop = tl.minimum((begin // SPLIT + 1) * SPLIT, end)
        high_R, part_R, part_RD = _nothing(ROWS, PADDED_WIDTH)
        for start in range(begin, stop, KEYS):
            key_K = start + tl.arange(0, KEYS)
            there_K = key_K < num_keys
            slot_K = _slots(own_pages, slots + first, past, key_K, there_K, PAGE)
            place_K = slot_K * KEY_HEADS + key_head
            key_KD = _stored(
                keys, key_scales, query_RD, place_K, width_D, there_K, inside_D, WIDTH, IS_INT8
            )
            score_RK = _product(query_RD, tl.trans(key_KD), WIDENS) * scale
            seen_RK = _seen(visible, mask_start, key_K, query_R, past, num, there_K, there_R)
            if HAS_WINDOW:
                new_K = there_K & (key_K >= past)
                at_K = tl.load(positions + first + key_K - past, mask=new_K, other=0)
                at_K = tl.where(new_K, at_K, key_K)
                seen_RK = seen_RK & _near(from_R, at_R, at_K, window, LOOKS_AHEAD)
            score_RK = tl.where(seen_RK, score_RK, float("-inf"))
            value_KD = _stored(
                values, value_scales, query_RD, place_K, width_D, there_K, inside_D, WIDTH, IS_INT8
            )
            high_R, part_R, part_RD = _add(high_R, part_R, part_RD, score_RK, value_KD, WIDENS)
        peak_R, total_R, sums_RD = _merge(peak_R, total_R, sums_RD, high_R, part_R, part_RD)
        begin = stop

    place_R = (first + query_R) * HEADS + head_R
    of_out_RD = place_R[:, None] * WIDTH + width_D
    if IS_SPREAD:
        of_part = first_split.to(tl.int64) * num_rows * HEADS
        tl.store(partial_peaks + (of_part + place_R) * 2, peak_R, mask=there_R)
        tl.store(partial_peaks + (of_part + place_R) * 2 + 1, total_R, mask=there_R)
        of_out_RD += of_part * WIDTH
        tl.store(partial_sums + of_out_RD, sums_RD, mask=there_R[:, None] & inside_D)
    else:
        total_R = tl.where(total_R == 0.0, 1.0, total_R)  # a token that sees nothing reads zeros
        sums_RD = (sums_RD / total_R[:, None]).to(mixed.dtype.element_ty)
        tl.store(mixed + of_out_RD, sums_RD, mask=there_R[:, None] & inside_D)


@triton.jit(do_not_specialize=["num_rows", "num_parts"])
def add_up(
    partial_sums,
    partial_peaks,
    mixed,
    num_rows,
    num_parts,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
):
    """One row and head of all stretches, in order."""
    place = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    width_D = tl.arange(0, PADDED_WIDTH)
    inside_D = width_D < WIDTH
    one = tl.arange(0, 1)
    peak, total, sums_D = _nothing(1, PADDED_WIDTH)
    for _ in range(num_parts):
        part_peak = tl.load(partial_peaks + place * 2 + one)
        part_total = tl.load(partial_peaks + place * 2 + 1 + one)
        part_D = tl.load(partial_sums + place * WIDTH + width_D[None, :], mask=inside_D[None, :])
        peak, total, sums_D = _merge(peak, total, sums_D, part_peak, part_total, part_D)
        place += num_rows * HEADS
    total = tl.where(total == 0.0, 1.0, total)
    out_D = (sums_D / total[:, None]).to(mixed.dtype.element_ty)
    place = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    tl.store(mixed + place * WIDTH + width_D[None, :], out_D, mask=inside_D[None, :])

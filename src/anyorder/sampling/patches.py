"""Which of a network's draws of the next patch becomes text: temperature without probabilities.

CALM (arXiv 2510.27688, section on likelihood-free sampling): a network that can only be drawn from
is drawn from many times. At temperature 1/n a patch that occurs c times has weight C(c, n), the
number of ways to see it n times in a row among the draws, whose mean is proportional to p^n: exact
in the limit of many draws. Where no patch occurs n times, n is as large as it can be. Temperature 0
takes the most frequent patch, of equally frequent ones the first drawn.

A patch may have to begin with given tokens: then only draws that do count, which makes them draws
from the conditional distribution. If there are none, those that agree the longest count, with the
given tokens in place of their own: an approximation.

All rows are counted at once, each by itself.

Shape suffixes: M rows, S draws of each, K tokens of a patch, U different patches of all rows, N
numbers that a patch is packed into.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import numpy as np

from anyorder.core.forward import Patch
from anyorder.sampling.draws import draw_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS = 63
"""Of a number that tokens are packed into."""


def choose_patches(
    draws_MSK: NDArray[np.int64],
    *,
    temperatures: Seq[float],
    begins: Seq[Seq[int]],
    uniforms: Seq[float],
) -> list[Patch]:
    """One of the draws for each row. Temperatures are 0 or 1/n, `uniforms` numbers in [0, 1);
    `begins` may be empty."""
    draws_MSK, counts_MS = _beginning_with(draws_MSK, begins)
    first_U, counts_U = _count(draws_MSK, counts_MS)
    rows_U = first_U // draws_MSK.shape[1]
    starts_M = rows_U.searchsorted(np.arange(len(draws_MSK)))
    chosen_M = _most(rows_U, starts_M, counts_U)
    temperatures_M = np.asarray(temperatures)
    if temperatures_M.any():
        powers_M = np.rint(1 / np.maximum(temperatures_M, 1e-9)).astype(np.int64)
        lengths_M = np.append(starts_M, len(rows_U))[1:] - starts_M
        ways_U = _ways(counts_U, powers_M, rows_U, starts_M)
        drawn_M = starts_M + draw_rows(ways_U, lengths_M, np.asarray(uniforms))
        chosen_M = np.where(temperatures_M == 0, chosen_M, drawn_M)
    tokens_MK = draws_MSK.reshape(-1, draws_MSK.shape[2])[first_U[chosen_M]]
    agree_MSK = (draws_MSK == tokens_MK[:, None]).cumprod(axis=2) * counts_MS[:, :, None]
    agree_MK = agree_MSK.sum(axis=1)
    all_MK = np.concatenate((counts_MS.sum(axis=1)[:, None], agree_MK[:, :-1]), axis=1)
    logprobs_MK = np.log(agree_MK / all_MK)
    return [
        Patch(tokens=tokens, logprobs=logprobs)
        for tokens, logprobs in zip(tokens_MK.tolist(), logprobs_MK.tolist(), strict=True)
    ]


def _beginning_with(
    draws_MSK: NDArray[np.int64], begins: Seq[Seq[int]]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The draws with the given tokens in place, and which of them count: those that agreed with
    them as far as any of the row did."""
    length = max(map(len, begins))
    if not length:
        return draws_MSK, np.ones(draws_MSK.shape[:2], dtype=bool)
    padded = [[*given, *[-1] * (length - len(given))] for given in begins]
    begins_M1B = np.asarray(padded)[:, None]
    heads_MSB = draws_MSK[:, :, :length]
    agree_MS = (heads_MSB == begins_M1B).cumprod(axis=2).sum(axis=2)
    counts_MS = agree_MS == agree_MS.max(axis=1, keepdims=True)
    heads_MSB = np.where(begins_M1B >= 0, begins_M1B, heads_MSB)
    return np.concatenate((heads_MSB, draws_MSK[:, :, length:]), axis=2), counts_MS


def _count(
    draws_MSK: NDArray[np.int64], counts_MS: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different patch was drawn first, and how often it was drawn; row by row, and in
    the order of drawing, which does not depend on what ids tokens have."""
    num_draws, size = draws_MSK.shape[1:]
    bits = max(1, int(draws_MSK.max()).bit_length())
    per_number = _BITS // bits
    keys_NMS: list[NDArray[Any]] = []
    for place in range(0, size, per_number):
        packed_MS = draws_MSK[:, :, place]
        for token in range(place + 1, min(place + per_number, size)):
            packed_MS = (packed_MS << bits) | draws_MSK[:, :, token]
        keys_NMS.append(packed_MS)
    if not counts_MS.all():
        keys_NMS.append(~counts_MS)
    # Stable: of equal draws the first comes first.
    order_MS = (
        keys_NMS[0].argsort(axis=1, kind="stable")
        if len(keys_NMS) == 1
        else np.lexsort(keys_NMS, axis=1)
    )
    is_new_MS = np.zeros(order_MS.shape, dtype=bool)
    is_new_MS[:, 0] = True
    for key_MS in keys_NMS:
        sorted_MS = np.take_along_axis(key_MS, order_MS, axis=1)
        is_new_MS[:, 1:] |= sorted_MS[:, 1:] != sorted_MS[:, :-1]
    order_MS += np.arange(len(order_MS))[:, None] * num_draws
    starts_U = is_new_MS.ravel().nonzero()[0]
    first_U = order_MS.ravel()[starts_U]
    found_U = np.append(starts_U, is_new_MS.size)[1:] - starts_U
    does_count_U = counts_MS.ravel()[first_U]
    first_U, found_U = first_U[does_count_U], found_U[does_count_U]
    in_order_U = first_U.argsort()
    return first_U[in_order_U], found_U[in_order_U]


def _most(
    rows_U: NDArray[np.int64], starts_M: NDArray[np.int64], counts_U: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The most frequent patch of each row, of equally frequent ones the first."""
    most_M = np.maximum.reduceat(counts_U, starts_M)
    best = (counts_U == most_M[rows_U]).nonzero()[0]
    first_M: NDArray[np.int64] = best[rows_U[best].searchsorted(np.arange(len(starts_M)))]
    return first_M


def _ways(
    counts_U: NDArray[np.int64],
    powers_M: NDArray[np.int64],
    rows_U: NDArray[np.int64],
    starts_M: NDArray[np.int64],
) -> NDArray[np.float64]:
    """C(count, power), up to a common factor a row; powers are lowered to the largest count."""
    most_M = np.maximum.reduceat(counts_U, starts_M)
    powers_U = np.minimum(powers_M, most_M)[rows_U]
    log_factorials = np.concatenate(([0.0], np.log(np.arange(1, most_M.max() + 1)).cumsum()))
    possible_U = counts_U >= powers_U
    rest_U = np.where(possible_U, counts_U - powers_U, 0)
    logs_U = log_factorials[counts_U] - log_factorials[rest_U]
    logs_U = np.where(possible_U, logs_U, -np.inf)
    ways_U: NDArray[np.float64] = np.exp(logs_U - np.maximum.reduceat(logs_U, starts_M)[rows_U])
    return ways_U

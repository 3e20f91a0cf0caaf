"""Which of a network's draws of the next patch becomes text: temperature without probabilities.

CALM (arXiv 2510.27688, section on likelihood-free sampling): a network that can only be drawn from
is drawn from many times. At temperature 1/n a patch that occurs c times has weight C(c, n), the
number of ways to see it n times in a row among the draws, whose mean is proportional to p^n: exact
in the limit of many draws. Where no patch occurs n times, n is as large as it can be. Temperature 0
takes the most frequent patch, of equally frequent ones the first drawn.

A patch may have to begin with given tokens: then only draws that do count, which makes them draws
from the conditional distribution. If there are none, those that agree the longest count, with the
given tokens in place of their own: an approximation.

Shape suffixes: S draws, K tokens of a patch, U different patches.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any

import numpy as np

from anyorder.core.forward import Patch
from anyorder.sampling.draws import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray


def choose_patch(
    draws_SK: NDArray[Any], *, temperature: float, begins: Seq[int] = (), uniform: float
) -> Patch:
    """One of the draws. `temperature` is 0 or 1/n, `uniform` a number in [0, 1)."""
    draws_SK = _beginning_with(draws_SK, np.asarray(begins, dtype=draws_SK.dtype))
    patches_UK, first_U, counts_U = np.unique(
        draws_SK, axis=0, return_index=True, return_counts=True
    )
    order = first_U.argsort()  # of drawing, which does not depend on what ids tokens have
    patches_UK, counts_U = patches_UK[order], counts_U[order]
    if temperature == 0:
        chosen = int(counts_U.argmax())
    else:
        chosen = draw(_ways(counts_U, power=round(1 / max(temperature, 1e-9))), uniform)
    tokens_K = patches_UK[chosen]
    agree_K = (draws_SK == tokens_K).cumprod(axis=1).sum(axis=0)
    shares_K = agree_K / np.concatenate(([len(draws_SK)], agree_K[:-1]))
    return Patch(tokens=tokens_K.tolist(), logprobs=np.log(shares_K).tolist())


def _beginning_with(draws_SK: NDArray[Any], begins_B: NDArray[Any]) -> NDArray[Any]:
    """Those that agree with the given tokens as far as any does, and with them in place."""
    length = len(begins_B)
    agree_S = (draws_SK[:, :length] == begins_B).cumprod(axis=1).sum(axis=1)
    found_SK: NDArray[Any] = draws_SK[agree_S == agree_S.max()]
    found_SK[:, :length] = begins_B
    return found_SK


def _ways(counts_U: NDArray[Any], power: int) -> NDArray[np.float64]:
    """C(count, power), up to a common factor; power is lowered to the largest count."""
    most = int(counts_U.max())
    power = min(power, most)
    log_factorials = np.concatenate(([0.0], np.log(np.arange(1, most + 1)).cumsum()))
    possible = counts_U >= power
    rest_U = np.where(possible, counts_U - power, 0)
    logs_U = log_factorials[counts_U] - log_factorials[rest_U]
    logs_U = np.where(possible, logs_U, -np.inf)
    ways_U: NDArray[np.float64] = np.exp(logs_U - logs_U.max())
    return ways_U

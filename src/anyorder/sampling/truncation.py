"""Controls that shape the distribution before a draw, on accelerators: temperature and truncation.

`weights` does the same for a row in main memory. Each is one small class over all rows that use it,
applied in the order of transformers' `generate`: temperature, top-k, top-p, min-p, typical; each
sees what the one before left, renormalised. Ties: tokens whose score equals that of the last one
kept are all kept, so that nothing depends on an arbitrary order. At least one token always stays:
top_p = 0 and typical_p = 0 keep the first (and its ties).

Sources: top-k, Fan et al. (2018); nucleus (top-p), Holtzman et al. (2019); locally typical, Meister
et al. (2022); min-p, Nguyen et al. (2024).

Shape suffixes: M rows, V vocabulary, K the first few tokens of the vocabulary in some order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Self

import torch

if TYPE_CHECKING:
    from anyorder.sampling.processors import Processor
    from anyorder.sampling.row import Row

_PREFIXES = (256, 4096)
"""How many leading tokens to look at before sorting a whole vocabulary."""


class _Shaping(ABC):
    """A control with one number per row."""

    def __init__(self, rows: list[int], values: list[float]) -> None:
        self.rows = rows
        self.values = values

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """See Processor."""
        values = {
            index: value
            for index, row in enumerate(rows)
            if row.request.temperature > 0 and (value := cls.value(row))
        }
        return cls(list(values), list(values.values())) if values else None

    @classmethod
    @abstractmethod
    def value(cls, row: Row) -> float:
        """The control's number; 0 where it is off."""

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """See Processor."""
        values_M1 = torch.tensor(self.values, dtype=torch.float64, device=scores_MV.device)[:, None]
        if len(self.rows) == len(scores_MV):
            return self.shape(scores_MV, values_M1)
        scores_MV[self.rows] = self.shape(scores_MV[self.rows], values_M1)
        return scores_MV

    @abstractmethod
    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """The new scores of the rows that use the control."""


class Temperature(_Shaping):
    """Divide scores by the temperature.

    The highest score is moved to 0 first, which changes no probability and keeps tiny temperatures
    from overflowing.
    """

    @classmethod
    def value(cls, row: Row) -> float:
        """The temperature, unless it is 1."""
        return 0.0 if row.request.temperature == 1.0 else row.request.temperature

    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """See _Shaping. Below the smallest normal float32 a temperature acts like it."""
        smallest = torch.finfo(torch.float32).tiny
        scores_MV -= scores_MV.amax(-1, keepdim=True)
        scores_MV /= values_M1.clamp(min=smallest).float()
        return scores_MV


class TopK(_Shaping):
    """Keep the k highest scores; k beyond the vocabulary keeps all."""

    @classmethod
    def value(cls, row: Row) -> float:
        """k."""
        return row.request.top_k

    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """See _Shaping."""
        last_M1 = values_M1.long().clamp(max=scores_MV.shape[1]) - 1
        leading_MK = scores_MV.topk(int(last_M1.max()) + 1).values
        return _keep(scores_MV, scores_MV, leading_MK.gather(1, last_M1))


class TopP(_Shaping):
    """Keep the smallest set of likeliest tokens whose probabilities add up to at least p."""

    @classmethod
    def value(cls, row: Row) -> float:
        """p; for p = 0 a number below every probability."""
        return 0.0 if row.request.top_p == 1.0 else max(row.request.top_p, 1e-300)

    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """See _Shaping."""
        probabilities_MV = scores_MV.softmax(-1)
        return _keep(scores_MV, scores_MV, _reach(scores_MV, probabilities_MV, values_M1))


class MinP(_Shaping):
    """Drop tokens less likely than this share of the likeliest token's probability."""

    @classmethod
    def value(cls, row: Row) -> float:
        """The share."""
        return row.request.min_p

    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """See _Shaping."""
        least_M1 = scores_MV.amax(-1, keepdim=True) + values_M1.log().float()
        return _keep(scores_MV, scores_MV, least_M1)


class TypicalP(_Shaping):
    """Keep the smallest set of tokens, those with surprise nearest the entropy first, whose
    probabilities add up to at least p."""

    @classmethod
    def value(cls, row: Row) -> float:
        """p; for p = 0 a number below every probability."""
        return 0.0 if row.request.typical_p == 1.0 else max(row.request.typical_p, 1e-300)

    def shape(self, scores_MV: torch.Tensor, values_M1: torch.Tensor) -> torch.Tensor:
        """See _Shaping."""
        logprobs_MV = scores_MV.log_softmax(-1)
        probabilities_MV = logprobs_MV.exp()
        entropy_M1 = -(logprobs_MV * probabilities_MV).nansum(-1, keepdim=True)
        typical_MV = -(logprobs_MV + entropy_M1).abs_()
        return _keep(scores_MV, typical_MV, _reach(typical_MV, probabilities_MV, values_M1))


def _keep(scores_MV: torch.Tensor, keys_MV: torch.Tensor, least_M1: torch.Tensor) -> torch.Tensor:
    """Scores whose key is at least `least_M1`; minus infinity elsewhere."""
    return torch.where(keys_MV < least_M1, -torch.inf, scores_MV)


def _reach(
    keys_MV: torch.Tensor, probabilities_MV: torch.Tensor, masses_M1: torch.Tensor
) -> torch.Tensor:
    """The key, by falling keys, at which the probabilities reach the mass; float32 [M, 1].

    Rows that reach it within a short prefix need no sort of the vocabulary. Masses that rounding
    keeps out of reach take everything.
    """
    size = keys_MV.shape[1]
    least_M1 = torch.empty(len(keys_MV), 1, dtype=keys_MV.dtype, device=keys_MV.device)
    pending = torch.arange(len(keys_MV), device=keys_MV.device)
    for num_leading in (*(prefix for prefix in _PREFIXES if prefix < size), size):
        everything = len(pending) == len(keys_MV)
        leading_MK, ids_MK = (keys_MV if everything else keys_MV[pending]).topk(num_leading)
        parts_MV = probabilities_MV if everything else probabilities_MV[pending]
        reached_MK = parts_MV.gather(1, ids_MK).double().cumsum(-1)
        last_M1 = (reached_MK < masses_M1[pending]).sum(-1, keepdim=True)
        least_M1[pending] = leading_MK.gather(1, last_M1.clamp(max=num_leading - 1))
        pending = pending[(last_M1[:, 0] == num_leading).nonzero()[:, 0]]
        if not len(pending):
            break
    return least_M1


SHAPERS: tuple[type[Processor], ...] = (Temperature, TopK, TopP, MinP, TypicalP)
"""In the order in which they act."""


def shape(scores_MV: torch.Tensor, rows: Seq[Row]) -> torch.Tensor:
    """Apply all of them to the rows with a temperature above 0; greedy rows take their argmax,
    which nothing here changes. The result may or may not be the tensor given."""
    for kind in SHAPERS:
        processor = kind.for_rows(rows, scores_MV.shape[1])
        if processor is not None:
            scores_MV = processor(scores_MV)
    return scores_MV

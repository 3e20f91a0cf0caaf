"""Controls that change scores or ban tokens: bias, penalties, bans and the guide's mask.

Each is one small class over all rows that use it, applied in the order of transformers' `generate`:
bias, penalties, bans, guide, forced tokens. They work alike on raw logits (for draws) and on
log-probabilities (for searches). A row that does not use a control comes through bit-identical.
What shapes the distribution afterwards (temperature, truncation) is in `truncation`.

Sources: repetition penalty, Keskar et al., "CTRL" (2019); presence and frequency penalties as
OpenAI's API defines them (generated tokens only); n-gram bans, Paulus et al. (2017).

Shape suffixes: M rows, V vocabulary, G guided rows, W words of 32 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch

from anyorder.core.errors import GuideError
from anyorder.sampling.windows import completes_at, repeats_at

if TYPE_CHECKING:
    from anyorder.sampling.row import Row

_LARGEST_BIAS = 1e30
"""A bias of plus infinity means "this token"; infinite scores would make later stages NaN."""


class Processor(Protocol):
    """One control, over all rows that use it."""

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """The control as these rows set it; None if no row uses it."""

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """Change the contiguous scores in place and return them."""


class _Scattered(ABC):
    """A control that changes the scores of few ids by an amount; subclasses say which and how."""

    def __init__(self, places: torch.Tensor, amounts: torch.Tensor) -> None:
        self.places = places
        """Row * vocabulary + id, every place once."""
        self.amounts = amounts

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """See Processor."""
        places, amounts = [], []
        for index, row in enumerate(rows):
            touched = cls.touched(row)
            if touched:
                ids = np.fromiter(touched.keys(), np.int64, len(touched))
                places.append(ids + index * vocabulary_size)
                amounts.append(np.fromiter(touched.values(), np.float32, len(touched)))
        if not places:
            return None
        return cls(
            torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(amounts))
        )

    @classmethod
    @abstractmethod
    def touched(cls, row: Row) -> Mapping[int, float]:
        """Amounts by id; empty where the control is off."""

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """See Processor."""
        places = self.places.to(scores_MV.device)
        scores = scores_MV.view(-1)
        scores[places] = self.changed(scores[places], self.amounts.to(scores_MV.device))
        return scores_MV

    @staticmethod
    def changed(scores: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """The new scores of the touched ids."""
        return scores - amounts


class LogitBias(_Scattered):
    """Add `logit_bias` to the scores of the ids it names. Minus infinity bans an id.

    Ids are inside the vocabulary; admission has seen to that.
    """

    @classmethod
    def touched(cls, row: Row) -> Mapping[int, float]:
        """See _Scattered."""
        return {token: min(bias, _LARGEST_BIAS) for token, bias in row.request.logit_bias.items()}

    @staticmethod
    def changed(scores: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """See _Scattered."""
        return scores + amounts


class RepetitionPenalty(_Scattered):
    """Divide positive scores of ids in prompt or text by the penalty; multiply negative ones."""

    @classmethod
    def touched(cls, row: Row) -> Mapping[int, float]:
        """See _Scattered."""
        penalty = row.request.repetition_penalty
        return {} if penalty == 1.0 else dict.fromkeys(row.history, penalty)

    @staticmethod
    def changed(scores: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """See _Scattered."""
        return torch.where(scores < 0, scores * amounts, scores / amounts)


class PresencePenalty(_Scattered):
    """Subtract the penalty from scores of ids already generated, however often."""

    @classmethod
    def touched(cls, row: Row) -> Mapping[int, float]:
        """See _Scattered."""
        penalty = row.request.presence_penalty
        return dict.fromkeys(row.history[row.num_prompt :], penalty) if penalty else {}


class FrequencyPenalty(_Scattered):
    """Subtract the penalty from scores of ids already generated, once per time."""

    @classmethod
    def touched(cls, row: Row) -> Mapping[int, float]:
        """See _Scattered."""
        penalty = row.request.frequency_penalty
        if not penalty:
            return {}
        counts = Counter(row.history[row.num_prompt :])
        return {token: penalty * count for token, count in counts.items()}


class _Bans(ABC):
    """A control that bans single ids; subclasses say which."""

    def __init__(self, places: list[int]) -> None:
        self.places = torch.tensor(places)

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """See Processor."""
        places = [
            index * vocabulary_size + token
            for index, row in enumerate(rows)
            for token in cls.banned(row)
        ]
        return cls(places) if places else None

    @classmethod
    @abstractmethod
    def banned(cls, row: Row) -> Iterable[int]:
        """The ids this row may not continue with."""

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """See Processor."""
        scores_MV.view(-1)[self.places.to(scores_MV.device)] = -torch.inf
        return scores_MV


class NoRepeatNgram(_Bans):
    """Ban ids that would complete an n-gram that prompt or text already contain."""

    @classmethod
    def banned(cls, row: Row) -> Iterable[int]:
        """Ids that followed earlier occurrences of the last n - 1 ids; all seen ids for n = 1."""
        size = row.request.no_repeat_ngram
        if size > 1 and row.canvas is not None:
            return repeats_at(row.history[: row.num_prompt], row.canvas, row.place, size)
        if not size or len(row.history) < size:
            return ()
        history = list(row.history)
        if size == 1:
            return set(history)
        last, prefix = history[-1], history[1 - size :]
        return {
            history[end]
            for end in range(size - 1, len(history))
            if history[end - 1] == last and history[end - size + 1 : end] == prefix
        }


class BadWords(_Bans):
    """Ban the last id of a banned sequence where the text already ends with the ids before it.

    Like transformers, a sequence that is one end token alone is not banned.
    """

    @classmethod
    def banned(cls, row: Row) -> Iterable[int]:
        """Last ids of the sequences that could be completed here; on a canvas, any of them."""
        if row.canvas is not None:
            banned = [ids for ids in row.banned if len(ids) > 1 or ids[0] not in row.end_tokens]
            prompt = row.history[: row.num_prompt]
            yield from completes_at(prompt, row.canvas, row.place, banned)
            return
        for *prefix, last in row.banned:
            if prefix:
                start = len(row.history) - len(prefix)
                if start >= 0 and list(row.history[start:]) == prefix:
                    yield last
            elif last not in row.end_tokens:
                yield last


class MinNewTokens(_Bans):
    """Ban end tokens while fewer than `min_new_tokens` were generated."""

    @classmethod
    def banned(cls, row: Row) -> Iterable[int]:
        """The end tokens, or none."""
        return row.end_tokens if row.bans_ends else ()


class GuideMask:
    """Ban what the row's guide does not allow next."""

    def __init__(self, rows: list[int], words_GW: torch.Tensor, errors: dict[int, str]) -> None:
        self.rows = rows
        self.words_GW = words_GW
        self.errors = errors
        """Rows whose guide gave up (a resource limit, or a text outside of its language)."""

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """See Processor."""
        guided = [index for index, row in enumerate(rows) if _is_guided(row)]
        if not guided:
            return None
        words_GW = torch.zeros(len(guided), -(-vocabulary_size // 32), dtype=torch.int32)
        errors: dict[int, str] = {}
        for words_W, index in zip(words_GW, guided, strict=True):
            row = rows[index]
            try:
                if row.canvas_guide is not None and row.canvas is not None:
                    row.canvas_guide.fill_mask(
                        row.canvas, row.place, row.length, words_W, blank=row.blank
                    )
                elif row.guide is not None:
                    row.guide.fill_mask(row.history[row.num_prompt :], words_W)
            except GuideError as error:
                errors[index] = str(error)
        return cls(guided, words_GW, errors)

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """See Processor."""
        allowed = unpack_bits(self.words_GW.to(scores_MV.device), scores_MV.shape[1])
        if len(self.rows) == len(scores_MV):
            return scores_MV.masked_fill_(~allowed, -torch.inf)
        scores_MV[self.rows] = scores_MV[self.rows].masked_fill_(~allowed, -torch.inf)
        return scores_MV


class Forced:
    """Leave nothing but the forced ids, at a score of 0: certain, for a search."""

    def __init__(self, forced: dict[int, list[int]]) -> None:
        self.forced = forced
        """Ids by row."""

    @classmethod
    def for_rows(cls, rows: Seq[Row], vocabulary_size: int) -> Self | None:
        """See Processor."""
        forced = {index: sorted(row.forced) for index, row in enumerate(rows) if row.forced}
        return cls(forced) if forced else None

    def __call__(self, scores_MV: torch.Tensor) -> torch.Tensor:
        """See Processor."""
        for index, tokens in self.forced.items():
            scores_MV[index] = -torch.inf
            scores_MV[index, tokens] = 0.0
        return scores_MV


def _is_guided(row: Row) -> bool:
    return row.guide is not None or row.canvas_guide is not None


def unpack_bits(words_GW: torch.Tensor, size: int) -> torch.Tensor:
    """Bool [G, size] from int32 words, lowest bit first."""
    if words_GW.device.type == "cpu":  # ten times faster there
        bits_GB = words_GW.contiguous().numpy().view(np.uint8)
        bits_GV = np.unpackbits(bits_GB, axis=1, count=size, bitorder="little")
        return torch.from_numpy(bits_GV).view(torch.bool)
    bits = torch.arange(32, dtype=torch.int32, device=words_GW.device)
    return ((words_GW[:, :, None] >> bits) & 1).bool().flatten(1)[:, :size]


EDITS: tuple[type[Processor], ...] = (
    LogitBias,
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    NoRepeatNgram,
    BadWords,
    MinNewTokens,
    GuideMask,
    Forced,
)
"""In the order in which they act."""


def edits(row: Row) -> bool:
    """Does any control of this module act on the row?"""
    request = row.request
    return bool(
        request.logit_bias
        or row.banned
        or row.forced
        or _is_guided(row)
        or request.no_repeat_ngram
        or request.repetition_penalty != 1.0
        or request.presence_penalty
        or request.frequency_penalty
        or (row.bans_ends and row.end_tokens)
    )


def edit(scores_MV: torch.Tensor, rows: Seq[Row]) -> dict[int, str]:
    """Apply all edits in place; errors by row, in one line each. Those rows' scores are void."""
    errors: dict[int, str] = {}
    for kind in EDITS:
        processor = kind.for_rows(rows, scores_MV.shape[1])
        if processor is not None:
            processor(scores_MV)
            if isinstance(processor, GuideMask):
                errors = processor.errors
    return errors


def nothing_left(row: Row) -> str:
    """The error of a row that has no token left, naming the controls that can ban tokens."""
    request = row.request
    active = {
        "logit_bias": bool(request.logit_bias),
        "no_repeat_ngram": bool(request.no_repeat_ngram),
        "bad_words": bool(row.banned),
        "min_new_tokens": request.min_new_tokens > row.num_generated,
        "guide": _is_guided(row),
    }
    names = [name for name, is_active in active.items() if is_active]
    return (
        f"no token is left after {row.num_generated} new tokens: {' and '.join(names)} together "
        "ban the whole vocabulary; relax one of them."
    )

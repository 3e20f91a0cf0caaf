"""Guided generation: which tokens keep the text inside a JSON Schema, regex, grammar or choice."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class GuideState(Protocol):
    """A guide, as one request uses it."""

    def fill_mask(self, generated: Seq[int], words: torch.Tensor) -> None:
        """Set the bits of the ids allowed after `generated`; int32 [vocabulary / 32]."""

    def complete(self, generated: Seq[int]) -> bool:
        """Does the guide accept no further text?"""

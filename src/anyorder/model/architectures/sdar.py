"""SDAR (arXiv 2510.06303): Qwen3 as block diffusion, blocks counted from the start of the prompt.

No token shift. Checkpoints for blocks of 8 to 64 do not all say so in their configuration; without
`block_size` there it is 4, and `-o block_size=32` says otherwise. The authors decode by
`block_diffusion`: `low_confidence_dynamic` with its level of 0.85 is the default on these
checkpoints (with fewer steps than places, set `steps` too), `low_confidence_static` is
`commit=confidence`, `sequential` is `commit=sequential`, and `entropy_bounded` is
`commit=entropy_bound` as its paper has it. They measure confidence after temperature and
truncation, as `judge=processed` does, a default here too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.qwen3 import Qwen3
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import LLAMA_NAMES, NameMap

_MASK = 151669
_BLOCK = 4


class Sdar(Architecture):
    """The names and fields of Qwen3."""

    model_types: ClassVar[tuple[str, ...]] = ("sdar",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = LLAMA_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return cls.in_blocks(replace(Qwen3.config(fields), architecture="sdar"), fields)

    @staticmethod
    def in_blocks(config: ModelConfig, fields: Fields) -> ModelConfig:
        """The network as SDAR trains it."""
        return replace(
            config,
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(config.vocabulary_size, _MASK),
            block_size=fields.size("block_size", _BLOCK),
            decoding={
                "block_diffusion": {
                    "commit": {"name": "threshold", "level": 0.85},
                    "judge": "processed",
                }
            },
        )

"""SDAR-30B-A3B (arXiv 2510.06303): Qwen3-MoE as block diffusion; see `sdar.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.qwen3_moe import Qwen3Moe
from anyorder.model.architectures.sdar import Sdar
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import QWEN_MOE_NAMES, NameMap


class SdarMoe(Architecture):
    """The names and fields of Qwen3-MoE."""

    model_types: ClassVar[tuple[str, ...]] = ("sdar_moe",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = QWEN_MOE_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return Sdar.in_blocks(replace(Qwen3Moe.config(fields), architecture="sdar_moe"), fields)

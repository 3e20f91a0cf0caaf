"""Phi-3 and Phi-4-mini (arXiv 2404.14219): LLaMA with fused projections.

LongRoPE, which the long-context variants use, is not supported; they are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import LLAMA_NAMES, NameMap


class Phi3(Architecture):
    """Fused rows lie as this stack fuses them: queries, keys, values; gate, up."""

    model_types: ClassVar[tuple[str, ...]] = ("phi3",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = {
        **LLAMA_NAMES,
        "layers.{layer}.attention.qkv": "layers.{layer}.self_attn.qkv_proj",
        "layers.{layer}.mlp.gate_up": "layers.{layer}.mlp.gate_up_proj",
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return replace(Llama.config(fields), architecture="phi3")

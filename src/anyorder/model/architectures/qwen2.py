"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): LLaMA with biases on queries, keys, values."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap


class Qwen2(Architecture):
    """Rotary pairs lie half and half in GGUF files too, so no rows are reordered."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)
    gguf_types: ClassVar[tuple[str, ...]] = ("qwen2",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = LLAMA_NAMES
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Llama.config(fields)
        return replace(config, architecture="qwen2", qkv_bias=True, output_bias=False)

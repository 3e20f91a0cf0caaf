"""Qwen3 (arXiv 2505.09388): LLaMA with a norm on each head's queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap


class Qwen3(Architecture):
    """No biases; `head_dim` is not the width over the number of heads."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    gguf_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = LLAMA_NAMES
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return replace(Llama.config(fields), architecture="qwen3", qk_norm="head")

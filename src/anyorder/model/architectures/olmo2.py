"""OLMo 2 (arXiv 2501.00656): norms after each branch, and over all queries and all keys."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap


class Olmo2(Architecture):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    model_types: ClassVar[tuple[str, ...]] = ("olmo2",)
    gguf_types: ClassVar[tuple[str, ...]] = ("olmo2",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = {
        **LLAMA_NAMES,
        "layers.{layer}.attention_out_norm": "layers.{layer}.post_attention_layernorm",
        "layers.{layer}.mlp_out_norm": "layers.{layer}.post_feedforward_layernorm",
    }
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Llama.config(fields)
        return replace(config, architecture="olmo2", qk_norm="full", norm_placement="after_branch")

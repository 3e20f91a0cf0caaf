"""OLMoE (arXiv 2409.02060): 64 small experts, a norm over all queries and all keys together."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, QWEN_MOE_NAMES, NameMap


class Olmoe(Architecture):
    """Queries, keys and values may be clipped."""

    model_types: ClassVar[tuple[str, ...]] = ("olmoe",)
    gguf_types: ClassVar[tuple[str, ...]] = ("olmoe",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = QWEN_MOE_NAMES
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Llama.config(fields)
        count = "num_experts" if fields.has("num_experts") else "num_local_experts"
        experts = Experts(
            num=fields.size(count),
            per_token=fields.size("num_experts_per_tok"),
            width=fields.size("intermediate_size"),
            normalize=fields.flag("norm_topk_prob", False),
        )
        return replace(
            config,
            architecture="olmoe",
            qk_norm="full",
            clip_qkv=fields.number("clip_qkv") if fields.has("clip_qkv") else None,
            layers=tuple(replace(layer, experts=experts) for layer in config.layers),
        )

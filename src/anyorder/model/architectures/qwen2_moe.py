"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with many small experts and one that all tokens share."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, QWEN_MOE_NAMES, NameMap


class Qwen2Moe(Architecture):
    """The shared expert's output is scaled by a sigmoid gate of its own."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_moe",)
    gguf_types: ClassVar[tuple[str, ...]] = ("qwen2moe",)
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
            width=fields.size("moe_intermediate_size"),
            normalize=fields.flag("norm_topk_prob", False),
            shared_width=fields.integer("shared_expert_intermediate_size"),
        )
        return replace(
            config,
            architecture="qwen2_moe",
            qkv_bias=fields.flag("qkv_bias", True),
            output_bias=False,
            layers=fields.with_experts(config.layers, experts),
        )

"""Qwen3-MoE (arXiv 2505.09388): Qwen3 with many small experts, none shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, QWEN_MOE_NAMES, NameMap, TensorSource


class Qwen3Moe(Architecture):
    """A norm on each head's queries and keys, as in Qwen3."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe",)
    gguf_types: ClassVar[tuple[str, ...]] = ("qwen3moe",)
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
        )
        return replace(
            config,
            architecture="qwen3_moe",
            qk_norm="head",
            layers=fields.with_experts(config.layers, experts),
        )

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        # GGUF has no field for it; all published models normalise.
        return super().gguf_fields(metadata, source) | {"norm_topk_prob": True}

"""Gemma 3 (arXiv 2503.19786), text only: norms around each branch, five local layers to one global.

Local layers have a sliding window and rotary base 10,000, global ones see everything and have base
1,000,000, scaled in the larger models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap, TensorSource


class Gemma3(Architecture):
    """The norms' scales are stored less 1; GGUF files store them whole."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)
    gguf_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = {
        **LLAMA_NAMES,
        "layers.{layer}.attention_out_norm": "layers.{layer}.post_attention_layernorm",
        "layers.{layer}.mlp_norm": "layers.{layer}.pre_feedforward_layernorm",
        "layers.{layer}.mlp_out_norm": "layers.{layer}.post_feedforward_layernorm",
    }
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        for name in ("attn_logit_softcapping", "use_bidirectional_attention"):
            if fields.has(name) and fields.value(name) is not False:
                raise fields.refuse(name, "this variant is not supported.")
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        bias = fields.flag("attention_bias", False)
        cap = "final_logit_softcapping"
        return ModelConfig(
            architecture="gemma3",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=cls._layers(fields),
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=fields.size("num_key_value_heads"),
            head_width=fields.size("head_dim"),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm="head",
            mlp_width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
            gated=True,
            norm="rms",
            norm_epsilon=fields.number("rms_norm_eps", 1e-6),
            norm_scale_offset=1.0,
            norm_placement="around",
            embedding_scale=width**0.5,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
            logit_cap=fields.number(cap) if fields.has(cap) else None,
        )

    @classmethod
    def _layers(cls, fields: Fields) -> tuple[LayerConfig, ...]:
        head_width, num_layers = fields.size("head_dim"), fields.num_layers
        scale = fields.number("query_pre_attn_scalar", 256.0) ** -0.5
        by_kind = fields.inside("rope_parameters")
        if by_kind.has("full_attention"):
            global_rope = read_rope(fields, head_width, parameters=by_kind.inside("full_attention"))
            local_rope = read_rope(
                fields, head_width, parameters=by_kind.inside("sliding_attention")
            )
        else:
            global_rope = read_rope(fields, head_width, base=1_000_000.0)
            local_base = fields.number("rope_local_base_freq", 10_000.0)
            local = Fields({"rope_theta": local_base}, fields.origin)
            local_rope = read_rope(fields, head_width, parameters=local)
        local_layer = LayerConfig(
            rope=local_rope, window=fields.size("sliding_window"), attention_scale=scale
        )
        global_layer = LayerConfig(rope=global_rope, attention_scale=scale)
        if fields.has("layer_types"):
            is_local = [
                kind == "sliding_attention" for kind in fields.texts("layer_types", num_layers)
            ]
        else:
            pattern = max(fields.integer("sliding_window_pattern", 6), 1)
            is_local = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
        return tuple(local_layer if local else global_layer for local in is_local)

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        data = super().gguf_fields(metadata, source)
        # The 27B model alone scales queries by its width per head instead of the head width.
        per_head = data["hidden_size"] / data["num_attention_heads"]
        is_largest = data["num_hidden_layers"] == 62
        data["query_pre_attn_scalar"] = per_head if is_largest else data.get("head_dim")
        return data

"""BLOOM (arXiv 2211.05100): ALiBi instead of positions, a norm right after the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_FUSED_NAMES, NameMap, Stored, TensorSource, qkv_from_heads


class Bloom(Architecture):
    """Queries, keys and values lie head by head."""

    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    gguf_types: ClassVar[tuple[str, ...]] = ("bloom",)
    prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")
    names: ClassVar[NameMap] = {
        "embedding": "word_embeddings",
        "embedding_norm": "word_embeddings_layernorm",
        "final_norm": "ln_f",
        "head": "lm_head",
        "layers.{layer}.attention_norm": "h.{layer}.input_layernorm",
        "layers.{layer}.attention.qkv": Stored(
            name="h.{layer}.self_attention.query_key_value", order=qkv_from_heads
        ),
        "layers.{layer}.attention.out": "h.{layer}.self_attention.dense",
        "layers.{layer}.mlp_norm": "h.{layer}.post_attention_layernorm",
        "layers.{layer}.mlp.up": "h.{layer}.mlp.dense_h_to_4h",
        "layers.{layer}.mlp.down": "h.{layer}.mlp.dense_4h_to_h",
    }
    gguf_names: ClassVar[NameMap] = GGUF_FUSED_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if fields.flag("apply_residual_connection_post_layernorm", False):
            raise fields.refuse(
                "apply_residual_connection_post_layernorm", "this variant is not supported."
            )
        width = fields.size("n_embed" if fields.has("n_embed") else "hidden_size")
        heads = "n_head" if fields.has("n_head") else "num_attention_heads"
        num_heads = fields.size(heads)
        head_width = fields.head_width(width, num_heads)
        return ModelConfig(
            architecture="bloom",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            # ALiBi has no last position; this is what the published models were trained on.
            context_length=fields.size("seq_length", 2048),
            layers=(LayerConfig(attention_scale=head_width**-0.5),) * fields.num_layers,
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            qkv_bias=True,
            output_bias=True,
            alibi=True,
            mlp_width=4 * width,
            activation="gelu_tanh",
            gated=False,
            mlp_bias=True,
            norm="layer",
            norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            embedding_norm=True,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
        )

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        data = super().gguf_fields(metadata, source)
        data["layer_norm_epsilon"] = data.get("layer_norm_eps")
        data["seq_length"] = data["max_position_embeddings"]
        return data

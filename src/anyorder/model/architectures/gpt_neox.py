"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): attention and MLP side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import GGUF_FUSED_NAMES, NameMap, Stored, TensorSource, qkv_from_heads


class GptNeox(Architecture):
    """Rotates a quarter of each head; queries, keys and values lie head by head."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt_neox",)
    gguf_types: ClassVar[tuple[str, ...]] = ("gptneox",)
    prefixes: ClassVar[tuple[str, ...]] = ("gpt_neox.", "")
    names: ClassVar[NameMap] = {
        "embedding": "embed_in",
        "final_norm": "final_layer_norm",
        "head": "embed_out",
        "layers.{layer}.attention_norm": "layers.{layer}.input_layernorm",
        "layers.{layer}.attention.qkv": Stored(
            name="layers.{layer}.attention.query_key_value", order=qkv_from_heads
        ),
        "layers.{layer}.attention.out": "layers.{layer}.attention.dense",
        "layers.{layer}.mlp_norm": "layers.{layer}.post_attention_layernorm",
        "layers.{layer}.mlp.up": "layers.{layer}.mlp.dense_h_to_4h",
        "layers.{layer}.mlp.down": "layers.{layer}.mlp.dense_4h_to_h",
    }
    gguf_names: ClassVar[NameMap] = GGUF_FUSED_NAMES
    ignored: ClassVar[tuple[str, ...]] = (".attention.bias", ".attention.masked_bias")

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        head_width = fields.head_width(width, num_heads)
        layer = LayerConfig(
            rope=read_rope(
                fields,
                head_width,
                base=fields.number("rotary_emb_base", 10_000.0),
                share=fields.number("rotary_pct", 0.25),
            ),
            attention_scale=head_width**-0.5,
        )
        bias = fields.flag("attention_bias", True)
        return ModelConfig(
            architecture="gpt_neox",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=(layer,) * fields.num_layers,
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            qkv_bias=bias,
            output_bias=bias,
            mlp_width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_act", "gelu"),
            gated=False,
            mlp_bias=True,
            norm="layer",
            norm_epsilon=fields.number("layer_norm_eps", 1e-5),
            parallel_residual=fields.flag("use_parallel_residual", True),
            tied_embeddings=fields.flag("tie_word_embeddings", False),
        )

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        data = super().gguf_fields(metadata, source)
        data["use_parallel_residual"] = metadata.get("gptneox.use_parallel_residual", True)
        return data

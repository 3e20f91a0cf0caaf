"""GPT-2 (Radford et al. 2019): learned positions, layer norms, a plain GELU MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_FUSED_NAMES, NameMap, Stored, TensorSource


class Gpt2(Architecture):
    """Projection weights are stored [in, out]."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    gguf_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    prefixes: ClassVar[tuple[str, ...]] = ("transformer.", "")
    names: ClassVar[NameMap] = {
        "embedding": "wte",
        "positions": "wpe",
        "final_norm": "ln_f",
        "head": "lm_head",
        "layers.{layer}.attention_norm": "h.{layer}.ln_1",
        "layers.{layer}.attention.qkv": Stored(name="h.{layer}.attn.c_attn", transposed=True),
        "layers.{layer}.attention.out": Stored(name="h.{layer}.attn.c_proj", transposed=True),
        "layers.{layer}.mlp_norm": "h.{layer}.ln_2",
        "layers.{layer}.mlp.up": Stored(name="h.{layer}.mlp.c_fc", transposed=True),
        "layers.{layer}.mlp.down": Stored(name="h.{layer}.mlp.c_proj", transposed=True),
    }
    gguf_names: ClassVar[NameMap] = GGUF_FUSED_NAMES
    ignored: ClassVar[tuple[str, ...]] = (".attn.bias", ".attn.masked_bias")

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, num_heads = fields.size("n_embd"), fields.size("n_head")
        head_width = fields.head_width(width, num_heads)
        context_length = fields.size("n_positions")
        scale = head_width**-0.5 if fields.flag("scale_attn_weights", True) else 1.0
        by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
        return ModelConfig(
            architecture="gpt2",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=context_length,
            layers=tuple(
                LayerConfig(attention_scale=scale / (layer + 1) if by_layer else scale)
                for layer in range(fields.num_layers)
            ),
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            qkv_bias=True,
            output_bias=True,
            mlp_width=fields.size("n_inner", 4 * width),
            activation=fields.activation("activation_function", "gelu_new"),
            gated=False,
            mlp_bias=True,
            norm="layer",
            norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
            learned_positions=context_length,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
        )

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        data = super().gguf_fields(metadata, source)
        data["n_embd"] = data["hidden_size"]
        data["n_head"] = data["num_attention_heads"]
        data["n_positions"] = data["max_position_embeddings"]
        data["n_inner"] = data["intermediate_size"]
        data["layer_norm_epsilon"] = data.get("layer_norm_eps")
        return data

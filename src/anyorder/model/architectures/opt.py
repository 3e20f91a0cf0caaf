"""OPT (arXiv 2205.01068), with its variants: OPT-350m norms after each residual sum and has
narrower embeddings behind projections."""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import NameMap

_OFFSET = 2
"""The first rows of the position table belong to padding."""
_NORMS = ("self_attn_layer_norm", "final_layer_norm")


class Opt(Architecture):
    """Learned positions that start at row 2, ReLU."""

    model_types: ClassVar[tuple[str, ...]] = ("opt",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.decoder.", "decoder.")
    names: ClassVar[NameMap] = {
        "embedding": "embed_tokens",
        "positions": "embed_positions",
        "project_in": "project_in",
        "project_out": "project_out",
        "final_norm": "final_layer_norm",
        "head": "lm_head",
        "layers.{layer}.attention_norm": f"layers.{{layer}}.{_NORMS[0]}",
        "layers.{layer}.attention_residual_norm": f"layers.{{layer}}.{_NORMS[0]}",
        "layers.{layer}.attention.q": "layers.{layer}.self_attn.q_proj",
        "layers.{layer}.attention.k": "layers.{layer}.self_attn.k_proj",
        "layers.{layer}.attention.v": "layers.{layer}.self_attn.v_proj",
        "layers.{layer}.attention.out": "layers.{layer}.self_attn.out_proj",
        "layers.{layer}.mlp_norm": f"layers.{{layer}}.{_NORMS[1]}",
        "layers.{layer}.mlp_residual_norm": f"layers.{{layer}}.{_NORMS[1]}",
        "layers.{layer}.mlp.up": "layers.{layer}.fc1",
        "layers.{layer}.mlp.down": "layers.{layer}.fc2",
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if not fields.flag("layer_norm_elementwise_affine", True):
            raise fields.refuse("layer_norm_elementwise_affine", "norms need a scale and a shift.")
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        head_width = fields.head_width(width, num_heads)
        embedding_width = fields.size("word_embed_proj_dim", width)
        before = fields.flag("do_layer_norm_before", True)
        context_length = fields.size("max_position_embeddings")
        bias = fields.flag("enable_bias", True)
        return ModelConfig(
            architecture="opt",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=context_length,
            layers=(LayerConfig(attention_scale=head_width**-0.5),) * fields.num_layers,
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            qkv_bias=bias,
            output_bias=bias,
            mlp_width=fields.size("ffn_dim"),
            activation=fields.activation("activation_function", "relu"),
            gated=False,
            mlp_bias=bias,
            norm="layer",
            norm_epsilon=1e-5,
            norm_placement="before" if before else "after_residual",
            final_norm=before and not fields.flag("_remove_final_layer_norm", False),
            embedding_width=embedding_width if embedding_width != width else None,
            learned_positions=context_length + _OFFSET,
            position_offset=_OFFSET,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
        )

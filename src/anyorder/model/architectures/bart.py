"""BART (arXiv 1910.13461): an encoder-decoder with learned positions that norms after each sum."""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import BART_NAMES, NameMap

_OFFSET = 2
"""The first rows of the position tables belong to padding."""


class Bart(Architecture):
    """One embedding for encoder, decoder and head."""

    model_types: ClassVar[tuple[str, ...]] = ("bart",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = BART_NAMES
    ignored: ClassVar[tuple[str, ...]] = ("embed_tokens.weight",)
    optional: ClassVar[tuple[str, ...]] = ("final_logits_bias",)

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, context_length = fields.size("d_model"), fields.size("max_position_embeddings")

        def stack(side: str, encoder: ModelConfig | None) -> ModelConfig:
            num_heads = fields.size(f"{side}_attention_heads")
            head_width = fields.head_width(width, num_heads)
            num_layers = fields.layer_count(f"{side}_layers")
            has_head = encoder is not None
            return ModelConfig(
                architecture="bart",
                vocabulary_size=fields.size("vocab_size"),
                width=width,
                context_length=context_length,
                layers=(LayerConfig(attention_scale=head_width**-0.5),) * num_layers,
                end_tokens=fields.integers("eos_token_id"),
                encoder=encoder,
                text_rules=fields.text_rules,
                num_heads=num_heads,
                num_kv_heads=num_heads,
                head_width=head_width,
                qkv_bias=True,
                output_bias=True,
                mlp_width=fields.size(f"{side}_ffn_dim"),
                activation=fields.activation("activation_function", "gelu"),
                gated=False,
                mlp_bias=True,
                norm="layer",
                norm_epsilon=1e-5,
                norm_placement="after_residual",
                final_norm=False,
                embedding_norm=True,
                embedding_scale=width**0.5 if fields.flag("scale_embedding", False) else 1.0,
                learned_positions=context_length + _OFFSET,
                position_offset=_OFFSET,
                tied_embeddings=fields.flag("tie_word_embeddings", True) or not has_head,
                logit_bias=has_head,
                length_classes=fields.integer("length_classes", 0) if has_head else 0,
                link_heads=fields.integer("link_heads", 0) if has_head else 0,
                insertion_classes=fields.integer("insertion_classes", 0) if has_head else 0,
                vertices_per_token=fields.integer("vertices_per_token", 0) if has_head else 0,
            )

        return stack("decoder", stack("encoder", None))

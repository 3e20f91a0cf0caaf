"""BERT (arXiv 1810.04805) with its head for masked tokens: an encoder that sees both ways.

Every token is of the first type ("sentence A"), as in a text of one piece. Not here: pairs of
texts, the next-sentence head (its weights are left aside), relative positions, BERT as a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import BERT_NAMES, NameMap, Stored


class Bert(Architecture):
    """Norms after each sum, learned positions, and a layer and a norm before the tied head."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    prefixes: ClassVar[tuple[str, ...]] = ("bert.",)
    names: ClassVar[NameMap] = {
        **BERT_NAMES,
        "head": "cls.predictions.decoder",
        "head_transform.dense": "cls.predictions.transform.dense",
        "head_transform.norm": "cls.predictions.transform.LayerNorm",
        "logit_bias": Stored(name="cls.predictions.bias", suffixed=False),
    }
    aliases: ClassVar[Mapping[str, str]] = {".gamma": ".weight", ".beta": ".bias"}
    ignored: ClassVar[tuple[str, ...]] = (
        "position_ids",
        "cls.predictions.decoder.bias",
        "pooler.dense.weight",
        "pooler.dense.bias",
        "seq_relationship.weight",
        "seq_relationship.bias",
    )

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if fields.flag("is_decoder", False):
            raise fields.refuse("is_decoder", "only BERT as an encoder is supported.")
        if fields.text("position_embedding_type", "absolute") != "absolute":
            raise fields.refuse("position_embedding_type", "only absolute is supported.")
        if not fields.flag("tie_word_embeddings", True):
            raise fields.refuse("tie_word_embeddings", "only a tied head is supported.")
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        head_width = fields.head_width(width, num_heads)
        context_length = fields.size("max_position_embeddings")
        activation = fields.activation("hidden_act", "gelu")
        return ModelConfig(
            architecture="bert",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=context_length,
            layers=(LayerConfig(attention_scale=head_width**-0.5),) * fields.num_layers,
            end_tokens=fields.integers("eos_token_id"),
            attention=frozenset({"bidirectional"}),
            closes_texts=True,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            qkv_bias=True,
            output_bias=True,
            mlp_width=fields.size("intermediate_size"),
            activation=activation,
            gated=False,
            mlp_bias=True,
            norm="layer",
            norm_epsilon=fields.number("layer_norm_eps", 1e-12),
            norm_placement="after_residual",
            final_norm=False,
            embedding_norm=True,
            learned_positions=context_length,
            token_types=fields.size("type_vocab_size", 2),
            head_transform=activation,
            logit_bias=True,
        )

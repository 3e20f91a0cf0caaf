"""ModernBERT (arXiv 2412.13663) with its head for masked tokens: rotary positions, gated MLPs.

Most layers see `local_attention` positions around a token and have a rotary base of their own;
every third one sees everything. Not here: heads for other tasks.
"""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import NameMap, Stored

_GLOBAL_BASE, _LOCAL_BASE = 160_000.0, 10_000.0


class Modernbert(Architecture):
    """Norms before each branch, but none before the first attention; no biases but the logits'."""

    model_types: ClassVar[tuple[str, ...]] = ("modernbert",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = {
        "embedding": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        "final_norm": "final_norm",
        "head": "decoder",
        "head_transform.dense": "head.dense",
        "head_transform.norm": "head.norm",
        "logit_bias": Stored(name="decoder.bias", suffixed=False),
        "layers.{layer}.attention_norm": "layers.{layer}.attn_norm",
        "layers.{layer}.attention.qkv": "layers.{layer}.attn.Wqkv",
        "layers.{layer}.attention.out": "layers.{layer}.attn.Wo",
        "layers.{layer}.mlp_norm": "layers.{layer}.mlp_norm",
        "layers.{layer}.mlp.gate_up": "layers.{layer}.mlp.Wi",
        "layers.{layer}.mlp.down": "layers.{layer}.mlp.Wo",
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        bias = fields.flag("attention_bias", False)
        return ModelConfig(
            architecture="modernbert",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=cls._layers(fields, fields.head_width(width, num_heads)),
            end_tokens=fields.integers("eos_token_id"),
            attention=frozenset({"bidirectional"}),
            closes_texts=True,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=fields.head_width(width, num_heads),
            qkv_bias=bias,
            output_bias=bias,
            mlp_width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_activation", "gelu"),
            gated=True,
            mlp_bias=fields.flag("mlp_bias", False),
            norm="layer",
            norm_epsilon=fields.number("norm_eps", 1e-5),
            norm_bias=fields.flag("norm_bias", False),
            embedding_norm=True,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
            head_transform=fields.activation("classifier_activation", "gelu"),
            head_transform_bias=fields.flag("classifier_bias", False),
            logit_bias=fields.flag("decoder_bias", True),
        )

    @classmethod
    def _layers(cls, fields: Fields, head_width: int) -> tuple[LayerConfig, ...]:
        num_layers = fields.num_layers
        if fields.has("layer_types"):
            kinds = fields.texts("layer_types", num_layers)
            if not set(kinds) <= {"full_attention", "sliding_attention"}:
                raise fields.refuse("layer_types", "only full and sliding attention are supported.")
            is_local = [kind == "sliding_attention" for kind in kinds]
        else:
            every = fields.size("global_attn_every_n_layers", 3)
            is_local = [layer % every != 0 for layer in range(num_layers)]
        by_kind = fields.inside("rope_parameters")
        bases = {
            True: fields.number("local_rope_theta", _LOCAL_BASE),
            False: fields.number("global_rope_theta", _GLOBAL_BASE),
        }
        ropes = {
            local: read_rope(
                fields,
                head_width,
                base=bases[local],
                parameters=by_kind.inside("sliding_attention" if local else "full_attention"),
            )
            for local in (True, False)
        }
        window = fields.size("local_attention", 128) // 2 + 1
        return tuple(
            LayerConfig(
                rope=ropes[local],
                window=window if local else None,
                window_ahead=local,
                attention_scale=head_width**-0.5,
                attention_norm=layer > 0,
            )
            for layer, local in enumerate(is_local)
        )

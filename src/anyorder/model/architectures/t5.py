"""T5 (arXiv 1910.10683): an encoder-decoder with relative positions and unscaled attention.

Version 1.1 has gated MLPs (`t5_gated`), and a head of its own where the checkpoint holds one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig, RelativePositions
from anyorder.model.fields import Fields
from anyorder.model.naming import NameMap

_ATTENTION = {"q": "q", "k": "k", "v": "v", "out": "o"}
_CONTEXT = 512
"""What it was trained on, where config.json does not say."""


def _names(side: str, mlp: int) -> dict[str, str]:
    """One stack's; its MLP is sub-layer `mlp` of a block."""
    block = f"{side}.block.{{layer}}.layer"
    first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    inside = {
        "attention_norm": f"{block}.0.layer_norm",
        **{f"attention.{a}": f"{block}.0.SelfAttention.{b}" for a, b in _ATTENTION.items()},
        "cross_norm": f"{block}.1.layer_norm",
        **{f"cross.{a}": f"{block}.1.EncDecAttention.{b}" for a, b in _ATTENTION.items()},
        "mlp_norm": f"{block}.{mlp}.layer_norm",
        "mlp.up": f"{block}.{mlp}.DenseReluDense.wi",
        "mlp.down": f"{block}.{mlp}.DenseReluDense.wo",
    }
    layers = {f"layers.{{layer}}.{part}": name for part, name in inside.items()}
    return {"relative_bias": first, "final_norm": f"{side}.final_layer_norm", **layers}


class T5(Architecture):
    """RMS norms before each branch, no biases."""

    model_types: ClassVar[tuple[str, ...]] = ("t5",)
    names: ClassVar[NameMap] = {
        "embedding": "shared",
        "head": "lm_head",
        **_names("decoder", 2),
        **{f"encoder.{part}": name for part, name in _names("encoder", 1).items()},
    }
    ignored: ClassVar[tuple[str, ...]] = (
        "embed_tokens.weight",
        "EncDecAttention.relative_attention_bias.weight",
    )

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, num_heads = fields.size("d_model"), fields.size("num_heads")
        kind = fields.text("feed_forward_proj", "relu")
        gated = kind.startswith("gated-")
        activation = fields.activation("feed_forward_proj", "relu") if not gated else "gelu_tanh"
        if gated and kind != "gated-gelu":
            raise fields.refuse("feed_forward_proj", "gated MLPs are supported with gelu only.")
        tied = fields.flag("tie_word_embeddings", True)
        encoder = ModelConfig(
            architecture="t5_gated" if gated else "t5",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("n_positions", _CONTEXT),
            layers=(LayerConfig(attention_scale=1.0),) * fields.layer_count("num_layers"),
            end_tokens=fields.integers("eos_token_id"),
            text_rules=fields.text_rules,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=fields.size("d_kv"),
            relative_positions=RelativePositions(
                num_buckets=fields.size("relative_attention_num_buckets", 32),
                max_distance=fields.size("relative_attention_max_distance", 128),
                bidirectional=True,
            ),
            mlp_width=fields.size("d_ff"),
            activation=activation,
            gated=gated,
            norm="rms",
            norm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
        )
        assert encoder.relative_positions is not None, "just given"
        num_layers = fields.layer_count("num_decoder_layers", len(encoder.layers))
        # Only models with a head tied from the start were trained with scaled outputs.
        scaled = fields.flag("scale_decoder_outputs", tied)
        return replace(
            encoder,
            layers=encoder.layers[:1] * num_layers,
            encoder=encoder,
            relative_positions=replace(encoder.relative_positions, bidirectional=False),
            tied_embeddings=tied,
            logit_scale=width**-0.5 if scaled else 1.0,
        )

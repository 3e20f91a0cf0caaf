"""LLaDA-MoE (arXiv 2509.24389): OLMoE's names, a norm on each head's queries and keys, both sides.

Masked diffusion without a token shift, decoded like LLaDA (see `llada.py`). Published checkpoints
have the `model_type` of LLaDA; other programs have them renamed to `lladamoe`. The weights of the
chosen experts are not normalised, whatever the configuration says: the published code never does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import Experts, LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import QWEN_MOE_NAMES, NameMap

_MASK = 156895


class LladaMoe(Architecture):
    """`moe_layer_freq` lists which layers have experts; the expert that all tokens share, if there
    is one, has no gate."""

    model_types: ClassVar[tuple[str, ...]] = ("lladamoe",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = {
        **QWEN_MOE_NAMES,
        **{
            f"layers.{{layer}}.mlp.shared.{part}": f"layers.{{layer}}.shared_expert.{part}_proj"
            for part in ("gate", "up", "down")
        },
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        fields.require("moe_router_score_function", "softmax", "softmax")
        fields.require("moe_router_enable_expert_bias", False, False)
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        head_width = fields.head_width(width, num_heads)
        experts = Experts(
            num=fields.size("num_experts"),
            per_token=fields.size("num_experts_per_tok"),
            width=fields.size("expert_intermediate_size"),
            normalize=False,
            shared_width=fields.integer("shared_expert_intermediate_size", 0),
            shared_gate=False,
        )
        kinds = fields.numbers("moe_layer_freq")
        if len(kinds) != fields.num_layers:
            raise fields.refuse("moe_layer_freq", f"it must have {fields.num_layers} numbers.")
        layer = LayerConfig(rope=read_rope(fields, head_width), attention_scale=head_width**-0.5)
        vocabulary_size = fields.size("vocab_size")
        bias = fields.flag("attention_bias", False)
        return ModelConfig(
            architecture="llada_moe",
            vocabulary_size=vocabulary_size,
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=tuple(replace(layer, experts=experts if kind else None) for kind in kinds),
            end_tokens=fields.integers("eos_token_id"),
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(vocabulary_size, _MASK),
            num_heads=num_heads,
            num_kv_heads=fields.size("num_key_value_heads", num_heads),
            head_width=head_width,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm="head" if fields.flag("qk_layernorm", False) else "none",
            clip_qkv=fields.number("clip_qkv") if fields.has("clip_qkv") else None,
            mlp_width=fields.size(
                "dense_intermediate_size", fields.size("expert_intermediate_size")
            ),
            activation=fields.activation("hidden_act", "silu"),
            gated=True,
            norm="rms",
            norm_epsilon=fields.number("rms_norm_eps"),
            tied_embeddings=fields.flag("tie_word_embeddings", False),
        )

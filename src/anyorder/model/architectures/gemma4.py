"""Gemma 4, text only: Gemma 3's layers with wider heads where they see everything, normalised
values, and in the larger model experts beside each dense MLP.

Five local layers to one global. Global layers may have key/value heads of their own number, whose
keys are their values too, and only the fastest quarter of their rotary frequencies turns. Not here:
embeddings per layer and layers that share keys and values (the models for small devices), images.
"""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import Experts, LayerConfig, ModelConfig, ProportionalScaling, Rope
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import LLAMA_NAMES, NameMap, Stored

_LAYER = "layers.{layer}"


class Gemma4(Architecture):
    """Attention scores are not scaled: queries and keys are normalised."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma4_text",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = {
        **LLAMA_NAMES,
        f"{_LAYER}.attention_out_norm": f"{_LAYER}.post_attention_layernorm",
        f"{_LAYER}.mlp_norm": f"{_LAYER}.pre_feedforward_layernorm",
        f"{_LAYER}.mlp_out_norm": f"{_LAYER}.post_feedforward_layernorm",
        f"{_LAYER}.scale": Stored(name=f"{_LAYER}.layer_scalar", suffixed=False),
        f"{_LAYER}.mlp.dense_norm": f"{_LAYER}.pre_feedforward_layernorm",
        f"{_LAYER}.mlp.dense.gate": f"{_LAYER}.mlp.gate_proj",
        f"{_LAYER}.mlp.dense.up": f"{_LAYER}.mlp.up_proj",
        f"{_LAYER}.mlp.dense.down": f"{_LAYER}.mlp.down_proj",
        f"{_LAYER}.mlp.dense_out_norm": f"{_LAYER}.post_feedforward_layernorm_1",
        f"{_LAYER}.mlp.sparse_norm": f"{_LAYER}.pre_feedforward_layernorm_2",
        f"{_LAYER}.mlp.sparse_out_norm": f"{_LAYER}.post_feedforward_layernorm_2",
        f"{_LAYER}.mlp.sparse.router": f"{_LAYER}.router.proj",
        **{
            f"{_LAYER}.mlp.sparse.{part}": Stored(name=f"{_LAYER}.{name}", suffixed=False)
            for part, name in {
                "router_norm": "router.scale",
                "expert_scale": "router.per_expert_scale",
                "experts.gate_up": "experts.gate_up_proj",
                "experts.down": "experts.down_proj",
            }.items()
        },
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return cls.described(
            fields,
            experts=fields.flag("enable_moe_block", False),
            keys_are_values=fields.flag("attention_k_eq_v", False),
        )

    @classmethod
    def described(cls, fields: Fields, *, experts: bool, keys_are_values: bool) -> ModelConfig:
        """With experts beside the dense MLPs, and keys that are values in global layers, or not."""
        for name in ("hidden_size_per_layer_input", "num_kv_shared_layers"):
            if fields.integer(name, 0):
                raise fields.refuse(name, "the models for small devices are not supported.")
        if fields.flag("use_double_wide_mlp", False):
            raise fields.refuse("use_double_wide_mlp", "this variant is not supported.")
        if fields.text("use_bidirectional_attention", "vision") != "vision":
            raise fields.refuse("use_bidirectional_attention", "texts are read causally.")
        width = fields.size("hidden_size")
        bias = fields.flag("attention_bias", False)
        cap = "final_logit_softcapping"
        return ModelConfig(
            architecture="gemma4",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=cls._layers(fields, experts, keys_are_values),
            end_tokens=fields.integers("eos_token_id"),
            num_heads=fields.size("num_attention_heads"),
            num_kv_heads=fields.size("num_key_value_heads"),
            head_width=fields.size("head_dim"),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm="head",
            value_norm=True,
            mlp_width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
            gated=True,
            norm="rms",
            norm_epsilon=fields.number("rms_norm_eps", 1e-6),
            norm_placement="around",
            layer_scale=True,
            embedding_scale=width**0.5,
            tied_embeddings=fields.flag("tie_word_embeddings", True),
            logit_cap=fields.number(cap) if fields.has(cap) else None,
        )

    @classmethod
    def _layers(
        cls, fields: Fields, has_experts: bool, keys_are_values: bool
    ) -> tuple[LayerConfig, ...]:
        kinds, experts = fields.texts("layer_types", fields.num_layers), None
        if has_experts:
            experts = Experts(
                num=fields.size("num_experts"),
                per_token=fields.size("top_k_experts"),
                width=fields.size("moe_intermediate_size"),
                normalize=True,
                beside_dense=True,
            )
        by_kind, by_layer = fields.inside("rope_parameters"), fields.inside("per_layer_config")
        layers = []
        for index, kind in enumerate(kinds):
            if kind not in ("full_attention", "sliding_attention"):
                raise fields.refuse("layer_types", "only full and sliding attention are supported.")
            is_local, own = kind == "sliding_attention", by_layer.inside(str(index))
            head_width, num_kv_heads = fields.size("head_dim"), fields.size("num_key_value_heads")
            if not is_local:
                head_width = fields.size("global_head_dim", 512)
            if keys_are_values and not is_local:
                num_kv_heads = fields.size("num_global_key_value_heads", num_kv_heads)
            head_width = own.size("head_dim", head_width)
            layers.append(
                LayerConfig(
                    rope=cls._rope(fields, by_kind.inside(kind), head_width),
                    window=fields.size("sliding_window") if is_local else None,
                    head_width=head_width,
                    num_kv_heads=own.size("num_key_value_heads", num_kv_heads),
                    keys_are_values=keys_are_values and not is_local,
                    attention_scale=1.0,
                    experts=experts,
                )
            )
        return tuple(layers)

    @staticmethod
    def _rope(fields: Fields, parameters: Fields, head_width: int) -> Rope:
        if parameters.text("rope_type", "default") != "proportional":
            return read_rope(fields, head_width, parameters=parameters)
        if parameters.number("factor", 1.0) != 1.0:
            raise parameters.refuse("factor", "frequencies are proportional by a factor of 1 only.")
        share = parameters.number("partial_rotary_factor", 1.0, above=0)
        base = parameters.number("rope_theta", above=1)
        return Rope(width=head_width, base=base, scaling=ProportionalScaling(share=share))

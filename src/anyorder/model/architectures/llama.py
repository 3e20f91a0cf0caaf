"""LLaMA 1, 2 and 3 (arXiv 2302.13971, 2307.09288, 2407.21783), SmolLM2 and Mistral."""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import Experts, LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope, read_windows
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap, Stored, heads_from_pairs


class Llama(Architecture):
    """RMS norm before each branch, rotary positions, gated SiLU MLP, grouped keys and values."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral")
    gguf_types: ClassVar[tuple[str, ...]] = ("llama",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = LLAMA_NAMES
    gguf_names: ClassVar[NameMap] = {
        **GGUF_NAMES,
        "layers.{layer}.attention.q": Stored(name="blk.{layer}.attn_q", order=heads_from_pairs),
        "layers.{layer}.attention.k": Stored(name="blk.{layer}.attn_k", order=heads_from_pairs),
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
        head_width = fields.size("head_dim", fields.head_width(width, num_heads))
        rope = read_rope(fields, head_width)
        experts = None
        if fields.integer("num_local_experts", 0):
            # Mixtral; a GGUF file of it says no more than this.
            experts = Experts(
                num=fields.size("num_local_experts"),
                per_token=fields.size("num_experts_per_tok"),
                width=fields.size("intermediate_size"),
                normalize=True,
            )
        bias = fields.flag("attention_bias", False)
        return ModelConfig(
            architecture="llama",
            vocabulary_size=fields.size("vocab_size"),
            width=width,
            context_length=fields.size("max_position_embeddings"),
            layers=tuple(
                LayerConfig(
                    rope=rope, window=window, attention_scale=head_width**-0.5, experts=experts
                )
                for window in read_windows(fields, fields.num_layers)
            ),
            end_tokens=fields.integers("eos_token_id"),
            num_heads=num_heads,
            num_kv_heads=fields.size("num_key_value_heads", num_heads),
            head_width=head_width,
            qkv_bias=bias,
            output_bias=bias,
            mlp_width=fields.size("intermediate_size"),
            activation=fields.activation("hidden_act", "silu"),
            gated=True,
            mlp_bias=fields.flag("mlp_bias", False),
            norm="rms",
            norm_epsilon=fields.number("rms_norm_eps"),
            tied_embeddings=fields.flag("tie_word_embeddings", False),
        )

"""LLaDA-8B and LLaDA-1.5 (arXiv 2502.09992, 2505.19223): LLaMA that sees both sides, OLMo's names.

Masked diffusion without a token shift; any length, in one canvas or in windows. The authors decode
by `masked_diffusion` with its defaults: the likeliest token first, at temperature 0. Their
`block_length` is our `window`, and their `steps` are shared out among windows, ours are those of
each. Their `cfg_scale` w is our `guidance_scale` w + 1 with a negative prompt of as many mask
tokens as the prompt has tokens, and `judge=processed`, since they measure confidence after
guidance. Their `remasking='random'` is `commit=random`, `logits_eos_inf` a `logit_bias` against the
end tokens.

The mixture of experts is published with the same `model_type`; `llada_moe.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llada_moe import LladaMoe
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import LayerConfig, ModelConfig
from anyorder.model.fields import Fields, read_rope
from anyorder.model.naming import NameMap, TensorSource

_MASK = 126336
_GGUF = {
    "hidden_size": "d_model",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "tie_word_embeddings": "weight_tying",
    "attention_bias": "include_qkv_bias",
}
"""What GGUF metadata is in LLaMA's words -> in LLaDA's."""
_LAYER = {
    "attention_norm": "attn_norm",
    "attention.q": "q_proj",
    "attention.k": "k_proj",
    "attention.v": "v_proj",
    "attention.out": "attn_out",
    "mlp_norm": "ff_norm",
    "mlp.gate": "ff_proj",
    "mlp.up": "up_proj",
    "mlp.down": "ff_out",
}


class Llada(Architecture):
    """The fields of OLMo's configuration that published checkpoints leave alone are not honoured,
    and refused where they say something else."""

    model_types: ClassVar[tuple[str, ...]] = ("llada",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.transformer.",)
    names: ClassVar[NameMap] = {
        "embedding": "wte",
        "final_norm": "ln_f",
        "head": "model.transformer.ff_out",
        **{f"layers.{{layer}}.{part}": f"blocks.{{layer}}.{name}" for part, name in _LAYER.items()},
    }
    gguf_types: ClassVar[tuple[str, ...]] = ("llada",)
    gguf_names: ClassVar[NameMap] = Llama.gguf_names

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        found = super().gguf_fields(metadata, source)
        mask = {"mask_token_id": metadata.get("tokenizer.ggml.mask_token_id")}
        return mask | {_GGUF.get(name, name): value for name, value in found.items()}

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if fields.has("num_experts"):
            return LladaMoe.config(fields)
        for name, only, default in (
            ("block_type", "llama", "llama"),
            ("layer_norm_type", "rms", "rms"),
            ("rope", True, True),
            ("alibi", False, False),
            ("attention_layer_norm", False, False),
            ("input_emb_norm", False, False),
            ("scale_logits", False, False),
            ("include_bias", False, False),
        ):
            fields.require(name, only, default)
        width, num_heads = fields.size("d_model"), fields.size("n_heads")
        head_width = fields.head_width(width, num_heads)
        layer = LayerConfig(rope=read_rope(fields, head_width), attention_scale=head_width**-0.5)
        vocabulary_size = fields.size("embedding_size", fields.size("vocab_size"))
        return ModelConfig(
            architecture="llada",
            vocabulary_size=vocabulary_size,
            width=width,
            context_length=fields.size("max_sequence_length"),
            layers=(layer,) * fields.layer_count("n_layers"),
            end_tokens=fields.integers("eos_token_id"),
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(vocabulary_size, _MASK),
            num_heads=num_heads,
            num_kv_heads=fields.size("n_kv_heads", num_heads),
            head_width=head_width,
            qkv_bias=fields.flag("include_qkv_bias", False),
            mlp_width=fields.size("mlp_hidden_size"),
            activation=fields.activation("activation_type", "silu"),
            gated=True,
            norm="rms",
            norm_epsilon=fields.number("rms_norm_eps"),
            tied_embeddings=fields.flag("weight_tying", False),
        )

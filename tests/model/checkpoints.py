"""Tiny random models of every family, made by transformers, with something in each to go wrong:
fewer key heads than query heads, windows shorter than the texts, both kinds of alternating layers.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 96
CONTEXT = 64
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
_EXPERTS = _GROUPED | {"num_experts_per_tok": 2}
_ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": CONTEXT,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
_OPT = {key: value for key, value in _SIZES.items() if key != "intermediate_size"} | {
    "ffn_dim": 80,
    "pad_token_id": 1,
}


def _rope(**parameters: object) -> dict[str, Any]:
    """LLaMA whose original context is a quarter of what is tested."""
    parameters = {"rope_theta": 500.0, **parameters}
    return _GROUPED | {"rope_parameters": parameters, "max_position_embeddings": 16}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "gpt2-layer-scaled": ("GPT2", _GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("GPTNeoX", _SIZES | {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    "gpt_neox-sequential": ("GPTNeoX", _SIZES | {"use_parallel_residual": False}),
    "llama": ("Llama", _GROUPED | {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", _GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", _GROUPED | {"head_dim": 20}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 7}),
    "qwen2": (
        "Qwen2",
        _GROUPED | {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", _GROUPED | {"head_dim": 16}),
    "opt": ("OPT", _OPT),
    "opt-350m": ("OPT", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "opt-unbiased": ("OPT", _OPT | {"enable_bias": False, "_remove_final_layer_norm": True}),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 3, "n_head": 6, "seq_length": 64},
    ),
    "gemma3": (
        "Gemma3",
        _GROUPED
        | {
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": _ALTERNATING,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 5.0,
        },
    ),
    "mixtral": ("Mixtral", _EXPERTS | {"num_local_experts": 5, "sliding_window": 9}),
    "qwen2_moe": (
        "Qwen2Moe",
        _EXPERTS
        | {
            "num_experts": 5,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 32,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        _EXPERTS
        | {
            "head_dim": 16,
            "num_experts": 5,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    "olmoe": ("Olmoe", _EXPERTS | {"num_experts": 5, "clip_qkv": 0.9}),
    "olmo2": ("Olmo2", _GROUPED),
    "phi3": ("Phi3", _GROUPED | {"sliding_window": None}),
    "rope-linear": ("Llama", _rope(rope_type="linear", factor=4.0)),
    "rope-yarn": (
        "Llama",
        _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "rope-yarn-mscale": (
        "Llama",
        _rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            mscale=0.7,
            mscale_all_dim=1.3,
            beta_fast=2.0,
            beta_slow=0.5,
            truncate=False,
        ),
    ),
    "rope-llama3": (
        "Llama",
        _rope(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
}
"""Name of a case -> transformers' family and the fields of its configuration."""
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
_HEADS = {"GPT2": "GPT2LMHeadModel"}


def make(family: str, fields: dict[str, Any]) -> Any:
    """A transformers model with random weights, far from their usual small start."""
    config_class = getattr(transformers, _CONFIGS.get(family, f"{family}Config"))
    model_class = getattr(transformers, _HEADS.get(family, f"{family}ForCausalLM"))
    torch.manual_seed(0)
    config = config_class(**fields, attn_implementation="eager")
    model = model_class(config).eval().requires_grad_(False)
    centre = 0.0 if family == "Gemma3" else 1.0
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name or "ln_" in name
        parameter.normal_(centre if is_scale and name.endswith("weight") else 0.0, 0.2)
    return model


@functools.cache
def reference(case: str) -> Any:
    """The model of a case in `FAMILIES`; made once."""
    return make(*FAMILIES[case])


def save(model: Any, folder: Path) -> Path:
    """The model's checkpoint folder."""
    model.save_pretrained(folder)
    return folder


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    """Token ids without the special ones."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))

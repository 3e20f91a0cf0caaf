"""Tiny random checkpoints of diffusion models as their authors publish them, and a naive twin.

Names of tensors and fields are those of the published config.json and index files; the twin reads
them by these names in float64, token by token where experts are concerned, and knows nothing of the
package. One entry of `LAYOUTS` a family.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anyorder.core.method import Abilities
from anyorder.model.checkpoint import open_folder
from anyorder.model.loaded import LoadedModel, abilities_of
from anyorder.model.loading import load_network

VOCABULARY = 61
MASK = 60
END = 2
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "eos_token_id": END,
    "mask_token_id": MASK,
}
_QWEN2 = _COMMON | {
    "intermediate_size": 48,
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "torch_dtype": "float32",
}
_QWEN3 = _QWEN2 | {"head_dim": 16, "attention_bias": False}

LAYOUTS: dict[str, dict[str, Any]] = {
    "llada": {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_type": "llama",
        "d_model": 32,
        "embedding_size": VOCABULARY,
        "eos_token_id": END,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "mask_token_id": MASK,
        "max_sequence_length": 256,
        "mlp_hidden_size": 48,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "vocab_size": VOCABULARY,
        "weight_tying": False,
    },
    "llada_moe": {key: value for key, value in _COMMON.items() if key != "mask_token_id"}
    | {
        "architectures": ["LLaDAMoEModelLM"],
        "model_type": "llada",
        "mask_token_id": MASK,
        "attention_bias": False,
        "clip_qkv": None,
        "dense_intermediate_size": 40,
        "expert_intermediate_size": 24,
        "shared_expert_intermediate_size": 16,
        "moe_layer_freq": [0, 1],
        "moe_router_enable_expert_bias": False,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "routed_scaling_factor": 1,
    },
    "llada2_moe": _COMMON
    | {
        "architectures": ["LLaDA2MoeModelLM"],
        "model_type": "llada2_moe",
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "intermediate_size": 40,
        "moe_intermediate_size": 24,
        "moe_router_enable_expert_bias": True,
        "n_group": 4,
        "norm_head": False,
        "norm_topk_prob": True,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_shared_experts": 1,
        "partial_rotary_factor": 0.5,
        "routed_scaling_factor": 2.5,
        "score_function": "sigmoid",
        "topk_group": 2,
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "block_size": 8,
    },
    "dream": _QWEN2
    | {
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "model_type": "Dream",
        "use_mrope": False,
    },
    "sdar": _QWEN3
    | {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "fuse_cross_entropy": True},
    "sdar_moe": _QWEN3
    | {
        "architectures": ["SDARMoeForCausalLM"],
        "model_type": "sdar_moe",
        "block_size": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 6,
        "num_experts_per_tok": 2,
    },
    "fast_dllm_qwen": _QWEN2
    | {
        "architectures": ["Fast_dLLM_QwenForCausalLM"],
        "model_type": "Fast_dLLM_Qwen",
        "bd_size": 8,
        "conplemenrary_mask": True,
        "layer_types": ["full_attention", "full_attention"],
    },
    "a2d_qwen2": _QWEN2
    | {
        "model_type": "a2d-qwen2",
        "layer_types": ["sliding_attention", "sliding_attention"],
        "sliding_window": 4,
        "use_sliding_window": True,
    },
    "a2d_qwen3": _QWEN3 | {"model_type": "a2d-qwen3"},
    "a2d_llama": _QWEN2 | {"model_type": "a2d-llama", "attention_bias": False, "mlp_bias": False},
}
"""Family -> its config.json."""
EXPERTS = {name for name, fields in LAYOUTS.items() if "num_experts" in fields}


# ------------------------------------------------------------------------------------ checkpoints
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published layout."""
    c = LAYOUTS[name]
    if name == "llada":
        width, inner = c["d_model"], c["mlp_hidden_size"]
        stem = "model.transformer."
        found: dict[str, tuple[int, ...]] = {
            stem + "wte.weight": (VOCABULARY, width),
            stem + "ln_f.weight": (width,),
            stem + "ff_out.weight": (VOCABULARY, width),
        }
        for n in range(c["n_layers"]):
            block = f"{stem}blocks.{n}."
            found |= {f"{block}{norm}.weight": (width,) for norm in ("attn_norm", "ff_norm")}
            for part in ("q_proj", "k_proj", "v_proj", "attn_out"):
                found[f"{block}{part}.weight"] = (width, width)
            found |= {f"{block}{part}.weight": (inner, width) for part in ("ff_proj", "up_proj")}
            found[f"{block}ff_out.weight"] = (width, inner)
        return found
    width, heads, groups = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    head = c.get("head_dim", width // heads)
    embedding = "word_embeddings" if name == "llada2_moe" else "embed_tokens"
    found = {
        f"model.{embedding}.weight": (VOCABULARY, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (VOCABULARY, width),
    }
    for n in range(c["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{norm}.weight"] = (width,)
        if name == "llada2_moe":
            rows = (heads + 2 * groups) * head
            found[layer + "attention.query_key_value.weight"] = (rows, width)
            found[layer + "attention.dense.weight"] = (width, heads * head)
            for norm in ("query_layernorm", "key_layernorm"):
                found[f"{layer}attention.{norm}.weight"] = (head,)
        else:
            for part, count in (("q", heads), ("k", groups), ("v", groups)):
                found[f"{layer}self_attn.{part}_proj.weight"] = (count * head, width)
                if name in ("dream", "fast_dllm_qwen", "a2d_qwen2"):
                    found[f"{layer}self_attn.{part}_proj.bias"] = (count * head,)
            found[layer + "self_attn.o_proj.weight"] = (width, heads * head)
            if name in ("llada_moe", "sdar", "sdar_moe", "a2d_qwen3"):
                for norm in ("q_norm", "k_norm"):
                    found[f"{layer}self_attn.{norm}.weight"] = (head,)
        for stem, inner in mlps(name, n).items():
            for part in ("gate_proj", "up_proj"):
                found[f"{layer}{stem}.{part}.weight"] = (inner, width)
            found[f"{layer}{stem}.down_proj.weight"] = (width, inner)
        if has_experts(name, n):
            found[layer + "mlp.gate.weight"] = (c["num_experts"], width)
            if name == "llada2_moe":
                found[layer + "mlp.gate.expert_bias"] = (c["num_experts"],)
    return found


def has_experts(name: str, n: int) -> bool:
    """Does layer n have experts?"""
    return name in EXPERTS and not (name in ("llada_moe", "llada2_moe") and n == 0)


def mlps(name: str, n: int) -> dict[str, int]:
    """The gated MLPs of layer n and their inner widths."""
    c = LAYOUTS[name]
    if not has_experts(name, n):
        return {"mlp": c.get("dense_intermediate_size") or c["intermediate_size"]}
    width = c.get("moe_intermediate_size") or c["expert_intermediate_size"]
    found = {f"mlp.experts.{index}": width for index in range(c["num_experts"])}
    if name == "llada_moe":
        found["shared_expert"] = c["shared_expert_intermediate_size"]
    if name == "llada2_moe":
        found["mlp.shared_experts"] = c["moe_intermediate_size"] * c["num_shared_experts"]
    return found


@functools.cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """Random float32 values of every tensor, norms around 1."""
    generator = torch.Generator().manual_seed(len(name))
    found = {}
    for tensor, shape in shapes(name).items():
        values = torch.randn(shape, generator=generator) * 0.25
        is_norm = len(shape) == 1 and tensor.endswith("weight")
        found[tensor] = values + 1 if is_norm else values
    return found


def write(name: str, folder: Path, **changes: Any) -> Path:
    """The checkpoint's folder, without a tokenizer."""
    save_file(weights(name), folder / "model.safetensors")
    fields = {key: value for key, value in (LAYOUTS[name] | changes).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def load(name: str, folder: Path, **abilities: Any) -> LoadedModel:
    """The checkpoint as the package reads it, in float64 where it can be."""
    config, source = open_folder(write(name, folder))
    dtype = torch.float32 if name in EXPERTS else torch.float64
    found: Abilities = abilities_of(name, config, None)
    return LoadedModel(
        network=load_network(config, source, dtype=dtype),
        abilities=dataclasses.replace(found, **abilities),
    )


# --------------------------------------------------------------------------------------- the twin
def rms(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def turned(heads_THD: torch.Tensor, width: int, base: float) -> torch.Tensor:
    """The first `width` dimensions rotated, i with i + width / 2."""
    half = width // 2
    speeds = torch.tensor([base ** (-2 * i / width) for i in range(half)], dtype=torch.float64)
    angles = torch.arange(len(heads_THD))[:, None, None] * speeds
    a, b, rest = heads_THD.split([half, half, heads_THD.shape[-1] - width], dim=-1)
    sides = (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin())
    return torch.cat((*sides, rest), dim=-1)


def gated(w: Mapping[str, torch.Tensor], stem: str, x: torch.Tensor, names: str) -> torch.Tensor:
    gate, up, down = names.split()
    inner = torch.nn.functional.silu(x @ w[f"{stem}{gate}.weight"].T)
    return (inner * (x @ w[f"{stem}{up}.weight"].T)) @ w[f"{stem}{down}.weight"].T


def routed(name: str, w: Mapping[str, torch.Tensor], layer: str, x: torch.Tensor) -> torch.Tensor:
    """The mixture of experts, token by token."""
    c, names = LAYOUTS[name], "gate_proj up_proj down_proj"
    out = torch.zeros_like(x)
    for row, token in enumerate(x):
        router = w[layer + "mlp.gate.weight"] @ token
        if name == "llada2_moe":
            shares = router.sigmoid()
            wanted = (shares + w[layer + "mlp.gate.expert_bias"]).tolist()
            size = c["num_experts"] // c["n_group"]
            groups = [wanted[at : at + size] for at in range(0, len(wanted), size)]
            best = sorted(range(len(groups)), key=lambda g: -sum(sorted(groups[g])[-2:]))
            open_groups = best[: c["topk_group"]]
            choice = [index for index in range(len(wanted)) if index // size in open_groups]
            choice = sorted(choice, key=lambda index: -wanted[index])[: c["num_experts_per_tok"]]
            factor = c["routed_scaling_factor"] / shares[choice].sum()
        else:
            shares = router.softmax(-1)
            choice = shares.argsort(descending=True)[: c["num_experts_per_tok"]].tolist()
            factor = 1 / shares[choice].sum() if c.get("norm_topk_prob") else torch.tensor(1.0)
        for index in choice:
            share = shares[index] * factor
            out[row] += share * gated(w, f"{layer}mlp.experts.{index}.", token, names)
    shared = {"llada_moe": "shared_expert.", "llada2_moe": "mlp.shared_experts."}.get(name)
    return out if shared is None else out + gated(w, layer + shared, x, names)


@torch.no_grad()
def twin(
    name: str,
    ids: list[int],
    visible: torch.Tensor | None = None,
    *,
    memory: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
    stale: list[bool] | None = None,
) -> torch.Tensor:
    """Logits [tokens, vocabulary] by the published names; `visible` says who sees whom.

    Keys and values go to `memory`, or where a place is `stale` come from there.
    """
    c = LAYOUTS[name]
    w = {key: value.double() for key, value in weights(name).items()}
    count = len(ids)
    seen = torch.ones(count, count, dtype=torch.bool) if visible is None else visible
    epsilon, base = c["rms_norm_eps"], c["rope_theta"]
    dense = name == "llada"
    num_heads = c["n_heads"] if dense else c["num_attention_heads"]
    num_groups = c["n_kv_heads"] if dense else c["num_key_value_heads"]
    width = c["d_model"] if dense else c["hidden_size"]
    head = c.get("head_dim", width // num_heads)
    stem = "model.transformer." if dense else "model."
    embedding = {"llada": "wte", "llada2_moe": "word_embeddings"}.get(name, "embed_tokens")
    x = w[f"{stem}{embedding}.weight"][ids]
    for n in range(c["n_layers"] if dense else c["num_hidden_layers"]):
        layer = f"{stem}blocks.{n}." if dense else f"{stem}layers.{n}."
        h = rms(x, w[layer + ("attn_norm" if dense else "input_layernorm") + ".weight"], epsilon)
        if name == "llada2_moe":
            qkv = h @ w[layer + "attention.query_key_value.weight"].T
            sizes = [num_heads * head, num_groups * head, num_groups * head]
            q, k, v = (part.reshape(count, -1, head) for part in qkv.split(sizes, dim=-1))
            out, norms = "attention.dense", ("attention.query_layernorm", "attention.key_layernorm")
        else:
            block = layer if dense else layer + "self_attn."
            parts = []
            for part in "qkv":
                value = h @ w[f"{block}{part}_proj.weight"].T
                value = value + w.get(f"{block}{part}_proj.bias", torch.zeros(()))
                parts.append(value.reshape(count, -1, head))
            q, k, v = parts
            out, norms = "self_attn.o_proj", ("self_attn.q_norm", "self_attn.k_norm")
            out = "attn_out" if dense else out
        if f"{layer}{norms[0]}.weight" in w:
            q = rms(q, w[f"{layer}{norms[0]}.weight"], epsilon)
            k = rms(k, w[f"{layer}{norms[1]}.weight"], epsilon)
        rotary = int(head * c.get("partial_rotary_factor", 1))
        q, k = turned(q, rotary, base), turned(k, rotary, base)
        if memory is not None:
            if stale is not None:
                old = torch.tensor(stale)[:, None, None]
                k, v = (torch.where(old, *pair) for pair in zip(memory[n], (k, v), strict=True))
            memory[n] = k, v
        mixed = torch.zeros_like(q)
        for number in range(num_heads):
            group = number // (num_heads // num_groups)
            scores = q[:, number] @ k[:, group].T / math.sqrt(head)
            shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            mixed[:, number] = shares @ v[:, group]
        x = x + mixed.reshape(count, -1) @ w[f"{layer}{out}.weight"].T
        norm = "ff_norm" if dense else "post_attention_layernorm"
        h = rms(x, w[f"{layer}{norm}.weight"], epsilon)
        if dense:
            x = x + gated(w, layer, h, "ff_proj up_proj ff_out")
        elif has_experts(name, n):
            x = x + routed(name, w, layer, h)
        else:
            x = x + gated(w, layer + "mlp.", h, "gate_proj up_proj down_proj")
    x = rms(x, w[stem + ("ln_f" if dense else "norm") + ".weight"], epsilon)
    return x @ w["model.transformer.ff_out.weight" if dense else "lm_head.weight"].T


def in_blocks(count: int, size: int) -> torch.Tensor:
    """Who sees whom where blocks see themselves and those before."""
    block = torch.arange(count) // size
    return block[:, None] >= block[None, :]

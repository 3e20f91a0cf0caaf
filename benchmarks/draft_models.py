"""Draft models for benchmarks: what can be had without training.

No smaller model with the default model's tokenizer can be fetched, so a draft model is the target's
lower layers, with its embedding, norm and head; it shares the weights and drafts no better than an
untrained exit does. Drafters whose networks must be trained get random weights, written to disk in
the layouts in which they are published: they propose nonsense, which must change nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from anyorder.model.loaded import LoadedModel
from anyorder.model.transformer import Transformer

_SCORED = 4096
"""Tokens that the EAGLE-3 drafter scores."""
_NUM_HEADS = 2


def lower_layers(model: LoadedModel, num_layers: int) -> LoadedModel:
    """A model of the first `num_layers` layers."""
    network = model.network
    assert isinstance(network, Transformer), "only a plain decoder can be cut"
    small = copy.copy(network)
    small._modules = dict(network._modules)
    small.layers = nn.ModuleList(list(network.layers)[:num_layers])
    small._stack = None
    small.config = dataclasses.replace(network.config, layers=network.config.layers[:num_layers])
    abilities = dataclasses.replace(
        model.abilities,
        name=f"{model.abilities.name}, lower {num_layers} layers",
        num_layers=num_layers,
    )
    return dataclasses.replace(model, network=small, abilities=abilities)


def random_drafter(name: str, target: LoadedModel, folder: Path) -> Path:
    """A folder with random weights for the drafter of this name, fit for the target."""
    network = target.network
    assert isinstance(network, Transformer), "drafters are for plain decoders"
    config = network.config
    rope = config.layers[0].rope
    assert rope is not None, "drafters have rotary positions"
    shape: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": 1,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": rope.base,
    }
    width, vocabulary = config.width, config.vocabulary_size
    sizes: dict[str, tuple[int, ...]] = {}
    if name == "medusa":
        shape = {"medusa_num_heads": _NUM_HEADS, "medusa_num_layers": 1}
        for head in range(_NUM_HEADS):
            sizes[f"{head}.0.linear.weight"] = (width, width)
            sizes[f"{head}.0.linear.bias"] = (width,)
            sizes[f"{head}.1.weight"] = (vocabulary, width)
    elif name == "eagle":
        shape |= {"model_type": "llama", "draft_vocab_size": _SCORED}
        sizes = {"fc.weight": (width, 3 * width), "lm_head.weight": (_SCORED, width)}
        sizes |= {"norm.weight": (width,), "midlayer.hidden_norm.weight": (width,)}
        sizes |= _layer(shape, "midlayer.", inputs=2 * width)
    else:
        depth = len(config.layers)
        layers = [1, depth // 2, depth - 3]
        shape |= {"model_type": "qwen3", "block_size": 4, "num_target_layers": depth}
        shape["dflash_config"] = {"target_layer_ids": layers, "mask_token_id": 0}
        sizes = {"fc.weight": (width, len(layers) * width), "norm.weight": (width,)}
        sizes |= {"hidden_norm.weight": (width,), **_layer(shape, "layers.0.", inputs=width)}
        for part in ("q_norm", "k_norm"):
            sizes[f"layers.0.self_attn.{part}.weight"] = (config.head_width,)
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(size, generator=generator) * 0.02 for key, size in sizes.items()}
    for key in weights:
        if "norm" in key:
            weights[key] += 1.0
    if name == "eagle":
        weights["d2t"] = torch.arange(_SCORED) * (vocabulary // _SCORED - 1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape))
    file = "medusa_lm_head" if name == "medusa" else "model"
    save_file(weights, folder / f"{file}.safetensors")
    return folder


def _layer(shape: dict[str, Any], prefix: str, *, inputs: int) -> dict[str, tuple[int, ...]]:
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    sizes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (queries, inputs),
        "self_attn.k_proj": (keys, inputs),
        "self_attn.v_proj": (keys, inputs),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    return {f"{prefix}{name}.weight": size for name, size in sizes.items()}

"""Tiny random checkpoints on disk, in the layouts in which targets and drafters are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch

VOCABULARY = 61
WIDTH = 32
NUM_LAYERS = 7
HEADS, KV_HEADS, HEAD_WIDTH, INNER = 4, 2, 8, 48
NUM_SCORED = 40
BLOCK, MASK = 6, 60
FUSED_LAYERS = (1, 3, 5)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_WIDTH,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
}
Weights = dict[str, torch.Tensor]


def write(folder: Path, config: dict[str, Any], weights: Weights, file: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(contiguous, folder / f"{file}.safetensors")
    return folder


def read(folder: Path) -> Weights:
    (file,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(file)


class _Random:
    """float64 weights far from their usual small start, so that a wrong one shows."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, centre: float = 0.0, spread: float = 0.25) -> torch.Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return values * spread + centre

    def layer(self, prefix: str, inputs: int = WIDTH, qk_norm: bool = False) -> Weights:
        queries, keys = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH
        weights = {
            "self_attn.q_proj.weight": self(queries, inputs),
            "self_attn.k_proj.weight": self(keys, inputs),
            "self_attn.v_proj.weight": self(keys, inputs),
            "self_attn.o_proj.weight": self(WIDTH, queries),
            "mlp.gate_proj.weight": self(INNER, WIDTH),
            "mlp.up_proj.weight": self(INNER, WIDTH),
            "mlp.down_proj.weight": self(WIDTH, INNER),
            "input_layernorm.weight": self(WIDTH, centre=1.0),
            "post_attention_layernorm.weight": self(WIDTH, centre=1.0),
        }
        if qk_norm:
            weights["self_attn.q_norm.weight"] = self(HEAD_WIDTH, centre=1.0)
            weights["self_attn.k_norm.weight"] = self(HEAD_WIDTH, centre=1.0)
        return {prefix + name: tensor for name, tensor in weights.items()}


def write_target(folder: Path, seed: int = 0) -> Path:
    """A LLaMA of seven layers whose tokens are w0, w1, ... and whose end token is 0."""
    random = _Random(seed)
    weights = {
        "model.embed_tokens.weight": random(VOCABULARY, WIDTH),
        "model.norm.weight": random(WIDTH, centre=1.0),
        "lm_head.weight": random(VOCABULARY, WIDTH),
    }
    for layer in range(NUM_LAYERS):
        weights |= random.layer(f"model.layers.{layer}.")
    config = {"model_type": "llama", "eos_token_id": 0, **SHAPE}
    write(folder, config, weights)
    words = {f"w{token}": token for token in range(VOCABULARY)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_medusa(folder: Path, num_heads: int = 3, num_blocks: int = 2, prefix: str = "") -> Path:
    random = _Random(1)
    weights: Weights = {}
    for head in range(num_heads):
        for block in range(num_blocks):
            weights[f"{prefix}{head}.{block}.linear.weight"] = random(WIDTH, WIDTH)
            weights[f"{prefix}{head}.{block}.linear.bias"] = random(WIDTH)
        weights[f"{prefix}{head}.{num_blocks}.weight"] = random(VOCABULARY, WIDTH)
    config = {
        "medusa_num_heads": num_heads,
        "medusa_num_layers": num_blocks,
        "base_model_name_or_path": "some/target",
    }
    return write(folder, config, weights, "medusa_lm_head")


def write_eagle(folder: Path, *, own_embedding: bool = False, **changes: Any) -> Path:
    random = _Random(2)
    scored = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
    scored = scored[:NUM_SCORED].sort().values
    weights = {
        "fc.weight": random(WIDTH, 3 * WIDTH),
        "norm.weight": random(WIDTH, centre=1.0),
        "lm_head.weight": random(NUM_SCORED, WIDTH, spread=0.6),
        "midlayer.hidden_norm.weight": random(WIDTH, centre=1.0),
        "d2t": scored - torch.arange(NUM_SCORED),
        "t2d": torch.isin(torch.arange(VOCABULARY), scored),
        **random.layer("midlayer.", inputs=2 * WIDTH),
    }
    if own_embedding:
        weights["embed_tokens.weight"] = random(VOCABULARY, WIDTH)
    shape = {**SHAPE, "num_hidden_layers": 1, "draft_vocab_size": NUM_SCORED}
    return write(folder, {"model_type": "llama", **shape, **changes}, weights)


def write_dflash(folder: Path, num_layers: int = 2, **changes: Any) -> Path:
    random = _Random(4)
    weights = {
        "fc.weight": random(WIDTH, len(FUSED_LAYERS) * WIDTH),
        "hidden_norm.weight": random(WIDTH, centre=1.0),
        "norm.weight": random(WIDTH, centre=1.0),
    }
    for layer in range(num_layers):
        weights |= random.layer(f"layers.{layer}.", qk_norm=True)
    config = {
        "model_type": "qwen3",
        **SHAPE,
        "num_hidden_layers": num_layers,
        "block_size": BLOCK,
        "num_target_layers": NUM_LAYERS,
        "dflash_config": {"target_layer_ids": list(FUSED_LAYERS), "mask_token_id": MASK},
        **changes,
    }
    return write(folder, config, weights)

"""A tiny random checkpoint folder with a tokenizer and a chat template, for the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.model.small_tokenizers import CHATML, byte_level

CONTEXT = 256
WIDTH, HEADS, KV_HEADS, MLP = 32, 4, 2, 48


def save_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """LLaMA with two layers; weights large enough that its choices are no coin tosses."""
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    head_width = WIDTH // HEADS
    weights = {"model.embed_tokens.weight": random(size, WIDTH)}
    weights |= {"lm_head.weight": random(size, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for layer in range(2):
        parts = {
            "self_attn.q_proj": random(WIDTH, WIDTH),
            "self_attn.k_proj": random(KV_HEADS * head_width, WIDTH),
            "self_attn.v_proj": random(KV_HEADS * head_width, WIDTH),
            "self_attn.o_proj": random(WIDTH, WIDTH),
            "mlp.gate_proj": random(MLP, WIDTH),
            "mlp.up_proj": random(MLP, WIDTH),
            "mlp.down_proj": random(WIDTH, MLP),
            "input_layernorm": torch.ones(WIDTH),
            "post_attention_layernorm": torch.ones(WIDTH),
        }
        weights |= {f"model.layers.{layer}.{name}.weight": part for name, part in parts.items()}
    config = {
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "tie_word_embeddings": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights, folder / "model.safetensors")
    return folder

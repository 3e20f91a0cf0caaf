"""Tiny random DiffusionGemmas, made by transformers: canvases of eight, windows of seven."""

from __future__ import annotations

import functools
from typing import Any

import transformers
from tests.model.checkpoints import VOCABULARY
from tests.model.test_gemma4 import randomize
from transformers.models.diffusion_gemma import DiffusionGemmaConfig, DiffusionGemmaTextConfig

CANVAS = 8
END = 1
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 24,
    "num_global_key_value_heads": 3,
    "max_position_embeddings": 64,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "final_logit_softcapping": 6.0,
    "num_experts": 5,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "eos_token_id": END,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@functools.cache
def reference(*, calm: bool = False) -> Any:
    """Text and canvas with layer scales of their own. Calm: layers add little, so that a canvas
    soon tells itself."""
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**_TEXT, attn_implementation="eager"),
        vision_config=transformers.Gemma4VisionConfig(**_VISION),
        canvas_length=CANVAS,
        attn_implementation="eager",
    )
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    randomize(model)
    # Untrained, a step magnifies rounding tenfold by what it reads of the one before.
    model.model.decoder.self_conditioning.down_proj.weight.mul_(0.2)
    for name, parameter in model.named_parameters():
        if calm and name.endswith(
            ("post_attention_layernorm.weight", "feedforward_layernorm.weight")
        ):
            parameter.mul_(0.1)
    return model

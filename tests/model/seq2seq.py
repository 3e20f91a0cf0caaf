"""Tiny random encoder-decoders of every family, made by transformers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tests.model.checkpoints import CONTEXT, VOCABULARY

PAD, END, START = 1, 2, 3
_SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}
_BART = _SIZES | {
    "bos_token_id": 0,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": CONTEXT,
    "forced_eos_token_id": None,
}
_T5 = _SIZES | {
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "d_kv": 12,
    "d_ff": 80,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("Bart", _BART | {"forced_bos_token_id": 0, "forced_eos_token_id": END}),
    "bart-scaled": ("Bart", _BART | {"scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("MBart", _BART | {"scale_embedding": True}),
    "marian": (
        "Marian",
        _BART | {"scale_embedding": True, "activation_function": "swish", "bad_words_ids": [[PAD]]},
    ),
    "t5": ("T5", _T5),
    "t5-1.1": ("T5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}


@functools.cache
def reference(case: str) -> Any:
    """The model of a case; made once."""
    return make(case)


def make(case: str, **changes: Any) -> Any:
    """A case's model, with weights far from their usual small start."""
    family, fields = FAMILIES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **fields | changes, attn_implementation="eager"
    )
    model = (
        getattr(
            transformers,
            {
                "Bart": "BartForConditionalGeneration",
                "MBart": "MBartForConditionalGeneration",
                "Marian": "MarianMTModel",
                "T5": "T5ForConditionalGeneration",
            }[family],
        )(config)
        .eval()
        .requires_grad_(False)
    )
    for name, parameter in model.named_parameters():
        if "embed_positions" in name and family == "Marian":
            continue  # computed, not learnt
        is_scale = "norm" in name and name.endswith("weight")
        # More of the source than of the last token, which a tied head would only repeat.
        spread = 0.2
        if family != "T5":
            spread = 0.5 if "encoder_attn." in name else 0.1 if "shared" in name else 0.2
        parameter.normal_(1.0 if is_scale else 0.0, spread)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(0.0, 0.2)
    return model

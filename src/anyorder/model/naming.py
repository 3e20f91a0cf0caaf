"""Where a network's parameters come from: names and layouts of checkpoint tensors.

A network fuses what checkpoints keep apart (queries, keys and values; gate and up; all experts of a
layer). Here every parameter is broken into *parts*, each named like
`layers.{layer}.attention.q.weight`; a family's name map says which tensor holds a part and how its
rows lie. Checkpoints that are fused themselves name the fused part.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from anyorder.model.config import ModelConfig


class TensorSource(Protocol):
    """Named tensors of one checkpoint, read one at a time."""

    @property
    def format(self) -> Literal["safetensors", "gguf"]:
        """Whose naming convention the tensors follow."""

    def names(self) -> Iterable[str]:
        """Every tensor's name."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """Its values, in a floating-point type. CheckpointError when they are damaged.

        `out`, contiguous and of as many numbers, may be filled and returned instead of new memory.
        """


@runtime_checkable
class StoredSource(TensorSource, Protocol):
    """A source that also gives rows of tensors as bytes, in the file's own format."""

    def file_format(self, name: str) -> str:
        """What GGUF calls the way in which a tensor is stored."""

    def stored(self, name: str) -> torch.Tensor:
        """Its rows, uint8 [rows, bytes]; perhaps a view of the file."""

    def release(self, name: str) -> None:
        """Its rows are needed no more."""


RowOrder = Callable[["torch.Tensor", "ModelConfig"], "torch.Tensor"]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a checkpoint stores a part that is not simply a tensor of the same layout."""

    name: str
    """Without ".weight" or ".bias", if the tensor's has them."""
    transposed: bool = False
    """Weights lie [in, out]."""
    order: RowOrder | None = None
    """Puts the stored rows into our order."""
    stacked: bool = False
    """Has the tensor a first dimension of 1 beyond the part's?"""
    suffixed: bool = True
    """Is the name followed by ".weight" or ".bias"?"""


NameMap = Mapping[str, str | Stored]
"""Part, with {layer} and {expert} as placeholders, without ".weight" -> tensor."""

FUSED = {
    "attention.qkv": ("attention.q", "attention.k", "attention.v"),
    "cross.kv": ("cross.k", "cross.v"),
    "mlp.gate_up": ("mlp.gate", "mlp.up"),
    "self_conditioning.mlp.gate_up": ("self_conditioning.mlp.gate", "self_conditioning.mlp.up"),
    "mlp.dense.gate_up": ("mlp.dense.gate", "mlp.dense.up"),
    "mlp.shared.gate_up": ("mlp.shared.gate", "mlp.shared.up"),
    "mlp.experts.gate_up": ("mlp.experts.gate", "mlp.experts.up"),
}
"""Fused linear layer -> its parts, in the order of rows."""


# -------------------------------------------------------------------------------------- row orders
def heads_from_pairs(weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Undo the row order that puts rotary pairs side by side: (0, 1), (2, 3), ... of each head."""
    heads = weight.reshape(-1, config.head_width // 2, 2, *weight.shape[1:])
    return heads.transpose(1, 2).reshape(weight.shape)


def qkv_from_heads(weight: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """From (query, key, value) head by head to all queries, then all keys, then all values."""
    heads = weight.reshape(config.num_heads, 3, config.head_width, *weight.shape[1:])
    return heads.transpose(0, 1).reshape(weight.shape)


# --------------------------------------------------------------------------------- common name maps
LLAMA_NAMES: NameMap = {
    "embedding": "embed_tokens",
    "final_norm": "norm",
    "head": "lm_head",
    "layers.{layer}.attention_norm": "layers.{layer}.input_layernorm",
    "layers.{layer}.attention.q": "layers.{layer}.self_attn.q_proj",
    "layers.{layer}.attention.k": "layers.{layer}.self_attn.k_proj",
    "layers.{layer}.attention.v": "layers.{layer}.self_attn.v_proj",
    "layers.{layer}.attention.out": "layers.{layer}.self_attn.o_proj",
    "layers.{layer}.attention.query_norm": "layers.{layer}.self_attn.q_norm",
    "layers.{layer}.attention.key_norm": "layers.{layer}.self_attn.k_norm",
    "layers.{layer}.mlp_norm": "layers.{layer}.post_attention_layernorm",
    "layers.{layer}.mlp.gate": "layers.{layer}.mlp.gate_proj",
    "layers.{layer}.mlp.up": "layers.{layer}.mlp.up_proj",
    "layers.{layer}.mlp.down": "layers.{layer}.mlp.down_proj",
}
"""LLaMA's names, which most later families share."""

_BART_STACK = {
    "positions": "embed_positions",
    "embedding_norm": "layernorm_embedding",
    "final_norm": "layer_norm",
    **{
        f"layers.{{layer}}.{part}": f"layers.{{layer}}.{name}"
        for part, name in {
            "attention.q": "self_attn.q_proj",
            "attention.k": "self_attn.k_proj",
            "attention.v": "self_attn.v_proj",
            "attention.out": "self_attn.out_proj",
            "attention_norm": "self_attn_layer_norm",
            "attention_residual_norm": "self_attn_layer_norm",
            "cross.q": "encoder_attn.q_proj",
            "cross.k": "encoder_attn.k_proj",
            "cross.v": "encoder_attn.v_proj",
            "cross.out": "encoder_attn.out_proj",
            "cross_norm": "encoder_attn_layer_norm",
            "cross_residual_norm": "encoder_attn_layer_norm",
            "mlp.up": "fc1",
            "mlp.down": "fc2",
            "mlp_norm": "final_layer_norm",
            "mlp_residual_norm": "final_layer_norm",
        }.items()
    },
}
BART_NAMES: NameMap = {
    "embedding": "shared",
    "head": "lm_head",
    "logit_bias": Stored(name="final_logits_bias", stacked=True, suffixed=False),
    "length_head": "length_head",
    **{f"link_head.{part}": f"link_head.{part}" for part in ("query", "key", "gate")},
    **{f"edit_head.{part}": f"edit_head.{part}" for part in ("insertion", "deletion")},
    **{part: f"decoder.{name}" for part, name in _BART_STACK.items()},
    **{f"encoder.{part}": f"encoder.{name}" for part, name in _BART_STACK.items()},
}
"""BART's, and those of its relatives mBART and Marian."""

BERT_NAMES: NameMap = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    **{
        f"layers.{{layer}}.{part}": f"encoder.layer.{{layer}}.{name}"
        for part, name in {
            "attention.q": "attention.self.query",
            "attention.k": "attention.self.key",
            "attention.v": "attention.self.value",
            "attention.out": "attention.output.dense",
            "attention_residual_norm": "attention.output.LayerNorm",
            "mlp.up": "intermediate.dense",
            "mlp.down": "output.dense",
            "mlp_residual_norm": "output.LayerNorm",
        }.items()
    },
}
"""BERT's, and RoBERTa's, their heads aside."""

DIT_NAMES: NameMap = {
    "embedding": Stored(name="vocab_embed.embedding", suffixed=False),
    "noise_level.first": "sigma_map.mlp.0",
    "noise_level.second": "sigma_map.mlp.2",
    "final_norm": "output_layer.norm_final",
    "final_modulation": "output_layer.adaLN_modulation",
    "head": "backbone.output_layer.linear",
    "layers.{layer}.attention_norm": "blocks.{layer}.norm1",
    "layers.{layer}.attention.qkv": "blocks.{layer}.attn_qkv",
    "layers.{layer}.attention.out": "blocks.{layer}.attn_out",
    "layers.{layer}.mlp_norm": "blocks.{layer}.norm2",
    "layers.{layer}.mlp.up": "blocks.{layer}.mlp.0",
    "layers.{layer}.mlp.down": "blocks.{layer}.mlp.2",
    "layers.{layer}.modulation": "blocks.{layer}.adaLN_modulation",
}
"""Of MDLM and its relatives."""

QWEN_MOE_NAMES: NameMap = {
    **LLAMA_NAMES,
    "layers.{layer}.mlp.router": "layers.{layer}.mlp.gate",
    "layers.{layer}.mlp.experts.gate": "layers.{layer}.mlp.experts.{expert}.gate_proj",
    "layers.{layer}.mlp.experts.up": "layers.{layer}.mlp.experts.{expert}.up_proj",
    "layers.{layer}.mlp.experts.down": "layers.{layer}.mlp.experts.{expert}.down_proj",
    "layers.{layer}.mlp.shared.gate": "layers.{layer}.mlp.shared_expert.gate_proj",
    "layers.{layer}.mlp.shared.up": "layers.{layer}.mlp.shared_expert.up_proj",
    "layers.{layer}.mlp.shared.down": "layers.{layer}.mlp.shared_expert.down_proj",
    "layers.{layer}.mlp.shared_gate": "layers.{layer}.mlp.shared_expert_gate",
}
"""Of Qwen's mixtures of experts, and OLMoE's."""

GGUF_NAMES: NameMap = {
    "embedding": "token_embd",
    "embedding_norm": "token_embd_norm",
    "positions": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
    "layers.{layer}.attention_norm": "blk.{layer}.attn_norm",
    "layers.{layer}.attention.q": "blk.{layer}.attn_q",
    "layers.{layer}.attention.k": "blk.{layer}.attn_k",
    "layers.{layer}.attention.v": "blk.{layer}.attn_v",
    "layers.{layer}.attention.out": "blk.{layer}.attn_output",
    "layers.{layer}.attention.query_norm": "blk.{layer}.attn_q_norm",
    "layers.{layer}.attention.key_norm": "blk.{layer}.attn_k_norm",
    "layers.{layer}.attention_out_norm": "blk.{layer}.post_attention_norm",
    "layers.{layer}.mlp_norm": "blk.{layer}.ffn_norm",
    "layers.{layer}.mlp_out_norm": "blk.{layer}.post_ffw_norm",
    "layers.{layer}.mlp.gate": "blk.{layer}.ffn_gate",
    "layers.{layer}.mlp.up": "blk.{layer}.ffn_up",
    "layers.{layer}.mlp.down": "blk.{layer}.ffn_down",
    "layers.{layer}.mlp.router": "blk.{layer}.ffn_gate_inp",
    "layers.{layer}.mlp.experts.gate": "blk.{layer}.ffn_gate_exps",
    "layers.{layer}.mlp.experts.up": "blk.{layer}.ffn_up_exps",
    "layers.{layer}.mlp.experts.down": "blk.{layer}.ffn_down_exps",
    "layers.{layer}.mlp.shared_gate": "blk.{layer}.ffn_gate_inp_shexp",
    "layers.{layer}.mlp.shared.gate": "blk.{layer}.ffn_gate_shexp",
    "layers.{layer}.mlp.shared.up": "blk.{layer}.ffn_up_shexp",
    "layers.{layer}.mlp.shared.down": "blk.{layer}.ffn_down_shexp",
}
"""GGUF names tensors alike in all families."""

GGUF_FUSED_NAMES: NameMap = {
    **GGUF_NAMES,
    "layers.{layer}.attention.qkv": "blk.{layer}.attn_qkv",
}
"""Of families whose queries, keys and values were one projection from the start."""

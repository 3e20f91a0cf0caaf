"""LLaDA2.0 and 2.1 (arXiv 2512.15745, 2602.08676): blocks of 32, many experts chosen by groups.

Half of each head is rotated, its queries and keys are normed; experts' weights are sigmoids, chosen
with a bias that only the choice sees, and normalised; one more expert has no gate. Block diffusion
without a token shift, blocks counted from the start of the prompt.

The authors decode by `block_diffusion` with `commit.level=0.95`, measured after temperature and
truncation (`judge=processed`); both are defaults on these checkpoints.
LLaDA2.1, which no field tells apart, also edits: its quality mode is `commit.level=0.7` with
`revise=edit`, its speed mode `commit.level=0.5`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import Experts, ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import QWEN_MOE_NAMES, NameMap, Stored

_MASK = 156895
_BLOCK = 32
_PARTS = {
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "attention.query_norm": "attention.query_layernorm",
    "attention.key_norm": "attention.key_layernorm",
    "mlp.shared.gate": "mlp.shared_experts.gate_proj",
    "mlp.shared.up": "mlp.shared_experts.up_proj",
    "mlp.shared.down": "mlp.shared_experts.down_proj",
}


class Llada2Moe(Architecture):
    """Queries, keys and values are one projection, in this order."""

    model_types: ClassVar[tuple[str, ...]] = ("llada2_moe",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = {
        **QWEN_MOE_NAMES,
        "embedding": "word_embeddings",
        **{f"layers.{{layer}}.{part}": f"layers.{{layer}}.{name}" for part, name in _PARTS.items()},
        "layers.{layer}.mlp.choice": Stored(
            name="layers.{layer}.mlp.gate.expert_bias", suffixed=False
        ),
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        fields.require("score_function", "sigmoid", "sigmoid")
        config = Llama.config(fields)
        per_token, width = fields.size("num_experts_per_tok"), fields.size("moe_intermediate_size")
        experts = Experts(
            num=fields.size("num_experts"),
            per_token=per_token,
            width=width,
            normalize=per_token > 1,
            scores="sigmoid",
            choice_bias=True,
            num_groups=fields.size("n_group", 1),
            groups_per_token=fields.size("topk_group", 1),
            scale=fields.number("routed_scaling_factor", 1.0),
            shared_width=width * fields.integer("num_shared_experts", 0),
            shared_gate=False,
        )
        first = fields.integer("first_k_dense_replace", 0)
        return replace(
            config,
            architecture="llada2_moe",
            layers=tuple(
                replace(layer, experts=experts if index >= first else None)
                for index, layer in enumerate(config.layers)
            ),
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(config.vocabulary_size, _MASK),
            block_size=fields.size("block_size", _BLOCK),
            decoding={
                "block_diffusion": {
                    "commit": {"name": "threshold", "level": 0.95},
                    "judge": "processed",
                }
            },
            qkv_bias=fields.flag("use_qkv_bias", False),
            output_bias=fields.flag("use_bias", False),
            mlp_bias=False,
            qk_norm="head" if fields.flag("use_qk_norm", True) else "none",
        )

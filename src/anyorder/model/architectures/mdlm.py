"""MDLM (arXiv 2406.07524): a DiT that tells masked tokens, seeing all others from both sides.

The published networks do not look at the noise level; those that do are told which share of the
canvas is masked. Their authors decode ancestrally: `masked_diffusion` with `commit=ancestral` and a
number of `steps`, in which passes that would change nothing are not run (their "ddpm_cache").

The mask token is the one behind the tokenizer's last, and the checkpoints come without a tokenizer:
put GPT-2's tokenizer.json into the folder. Not here: the D3PM and SEDD parameterisations, whose
outputs mean something else.
"""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.config import LayerConfig, ModelConfig, Modulation, Rope
from anyorder.model.fields import Fields
from anyorder.model.naming import DIT_NAMES, NameMap

_EPSILON = 1e-5
_MLP_RATIO = 4


class Mdlm(Architecture):
    """Layer norms without bias, rotary positions, GELU, all under a modulation."""

    model_types: ClassVar[tuple[str, ...]] = ("mdlm",)
    prefixes: ClassVar[tuple[str, ...]] = ("backbone.",)
    names: ClassVar[NameMap] = DIT_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        vocabulary_size = fields.size("vocab_size")
        width, num_heads = fields.size("hidden_dim"), fields.size("n_heads")
        head_width = fields.head_width(width, num_heads)
        layer = LayerConfig(rope=Rope(width=head_width), attention_scale=head_width**-0.5)
        return ModelConfig(
            architecture="mdlm",
            vocabulary_size=vocabulary_size,
            width=width,
            context_length=fields.size("model_length"),
            layers=(layer,) * fields.layer_count("n_blocks"),
            end_tokens=fields.integers("eos_token_id"),
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(vocabulary_size, vocabulary_size - 1),
            decoding={"masked_diffusion": {"commit": "ancestral", "steps": 1000}},
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_width=head_width,
            mlp_width=_MLP_RATIO * width,
            activation="gelu_tanh",
            gated=False,
            mlp_bias=True,
            norm="layer",
            norm_epsilon=_EPSILON,
            norm_bias=False,
            modulation=Modulation(
                width=fields.size("cond_dim"),
                reads_noise=fields.flag("time_conditioning", False),
            ),
            tied_embeddings=False,
            head_bias=True,
        )

"""Dream-7B (arXiv 2508.15487): Qwen2.5 that sees both sides, with its token shift kept.

Masked diffusion; a place is told by the token before it. Planned Diffusion (arXiv 2510.18087) is
published in this layout too, with six more tokens. The authors decode by `masked_diffusion`:
`alg=entropy`, which they recommend and which is the default on these checkpoints, is
`commit=entropy`; `maskgit_plus` is `commit=confidence`, `topk_margin` is `commit=margin`, `origin`
is `commit=ancestral`, and `alg_temp` is `commit.noise`. Their numbers of places a step come from
`schedule=late`. They recommend temperature 0.2 and top_p 0.95, and measure confidence after both,
as `judge=processed` does, a default here too. An option that is given replaces its default as a
whole: noise with entropies is `commit=entropy` and `commit.noise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.qwen2 import Qwen2
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import GGUF_NAMES, LLAMA_NAMES, NameMap, TensorSource

_MASK = 151666


class Dream(Architecture):
    """The names and fields of Qwen2."""

    model_types: ClassVar[tuple[str, ...]] = ("Dream",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = LLAMA_NAMES
    gguf_types: ClassVar[tuple[str, ...]] = ("dream",)
    gguf_names: ClassVar[NameMap] = GGUF_NAMES

    @classmethod
    def gguf_fields(cls, metadata: Mapping[str, Any], source: TensorSource) -> dict[str, Any]:
        mask = {"mask_token_id": metadata.get("tokenizer.ggml.mask_token_id")}
        return super().gguf_fields(metadata, source) | mask

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Qwen2.config(fields)
        return replace(
            config,
            architecture="dream",
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(config.vocabulary_size, _MASK),
            token_shift=True,
            decoding={"masked_diffusion": {"commit": "entropy", "judge": "processed"}},
        )

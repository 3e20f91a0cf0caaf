"""Fast-dLLM v2 (arXiv 2509.26328): Qwen2.5 as block diffusion with its token shift kept.

Blocks of 32 (`bd_size`), counted from the start of the prompt. The authors decode by
`block_diffusion`, with the defaults on these checkpoints: sub-blocks of 8 from left to right,
tokens of at least 0.9 after temperature and truncation, and each block's first token from the pass
that stores the block before, which they take greedily at any temperature and we draw.
Their `use_block_cache`, an approximation within a block, is not here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.qwen2 import Qwen2
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import LLAMA_NAMES, NameMap

_MASK = 151665
_BLOCK = 32


class FastDllmQwen(Architecture):
    """The names and fields of Qwen2."""

    model_types: ClassVar[tuple[str, ...]] = ("Fast_dLLM_Qwen",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = LLAMA_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Qwen2.config(fields)
        return replace(
            config,
            architecture="fast_dllm_qwen",
            attention=frozenset({"bidirectional"}),
            mask_token=fields.mask_token(config.vocabulary_size, _MASK),
            block_size=fields.size("bd_size", _BLOCK),
            token_shift=True,
            decoding={
                "block_diffusion": {
                    "commit": {"name": "threshold", "level": 0.9},
                    "judge": "processed",
                    "window": 8,
                    "first": "clean",
                }
            },
        )

"""Tiny-A2D: Qwen2, Qwen3 and LLaMA fine-tuned into masked or block diffusion by the dllm library.

The source's configuration and tensors under a `model_type` of their own; every token sees both
sides, whatever window the source had, and no token shift. The mask token is the tokenizer's. Their
networks for blocks (bd3lm, blocks of 32) have no field that says so: ask for `block_diffusion` with
`-o block_size=32`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.architectures.qwen2 import Qwen2
from anyorder.model.architectures.qwen3 import Qwen3
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import LLAMA_NAMES, NameMap

_SOURCES: dict[str, type[Architecture]] = {
    "a2d-llama": Llama,
    "a2d-qwen2": Qwen2,
    "a2d-qwen3": Qwen3,
}


class A2d(Architecture):
    """LLaMA's names, which all sources share."""

    model_types: ClassVar[tuple[str, ...]] = tuple(_SOURCES)
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)
    names: ClassVar[NameMap] = LLAMA_NAMES

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = _SOURCES[fields.text("model_type")].config(fields)
        return replace(
            config,
            architecture="a2d",
            layers=tuple(replace(layer, window=None) for layer in config.layers),
            attention=frozenset({"bidirectional"}),
        )

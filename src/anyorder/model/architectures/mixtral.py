"""Mixtral (arXiv 2401.04088): Mistral with eight experts in place of each MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.llama import Llama
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import LLAMA_NAMES, NameMap

_MOE = "layers.{layer}.block_sparse_moe"


class Mixtral(Architecture):
    """Its GGUF files call themselves "llama"; `Llama` reads them."""

    model_types: ClassVar[tuple[str, ...]] = ("mixtral",)
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "")
    names: ClassVar[NameMap] = {
        **LLAMA_NAMES,
        "layers.{layer}.mlp.router": f"{_MOE}.gate",
        "layers.{layer}.mlp.experts.gate": f"{_MOE}.experts.{{expert}}.w1",
        "layers.{layer}.mlp.experts.up": f"{_MOE}.experts.{{expert}}.w3",
        "layers.{layer}.mlp.experts.down": f"{_MOE}.experts.{{expert}}.w2",
    }

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        return replace(Llama.config(fields), architecture="mixtral")

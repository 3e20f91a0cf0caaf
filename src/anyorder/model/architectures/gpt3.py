"""GPT-3 (arXiv 2005.14165): GPT-2 that alternates dense and locally banded attention.

The paper names the pattern (after the Sparse Transformer, arXiv 1904.10509) but neither the band's
width nor which layers are dense. Here even layers are dense, odd ones see the last `attention_band`
positions, a field of config.json. No weights were published; this is a configuration to train.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.gpt2 import Gpt2
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import NameMap


class Gpt3(Architecture):
    """GPT-2's names and fields, and `attention_band`."""

    model_types: ClassVar[tuple[str, ...]] = ("gpt3",)
    prefixes: ClassVar[tuple[str, ...]] = Gpt2.prefixes
    names: ClassVar[NameMap] = Gpt2.names

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Gpt2.config(fields)
        band = fields.size("attention_band")
        layers = tuple(
            replace(layer, window=band if index % 2 else None)
            for index, layer in enumerate(config.layers)
        )
        return replace(config, architecture="gpt3", layers=layers)

"""Marian's translation models (arXiv 1804.00344): BART with sinusoidal positions."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.bart import Bart
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import BART_NAMES, NameMap


class Marian(Architecture):
    """Checkpoints with a vocabulary for each side are refused."""

    model_types: ClassVar[tuple[str, ...]] = ("marian",)
    prefixes: ClassVar[tuple[str, ...]] = Bart.prefixes
    names: ClassVar[NameMap] = BART_NAMES
    ignored: ClassVar[tuple[str, ...]] = (*Bart.ignored, "embed_positions.weight")
    optional: ClassVar[tuple[str, ...]] = Bart.optional

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        if not fields.flag("share_encoder_decoder_embeddings", True):
            raise fields.refuse(
                "share_encoder_decoder_embeddings",
                "encoder and decoder must share their vocabulary.",
            )
        config = Bart.config(fields)
        assert config.encoder is not None, "BART has an encoder"
        encoder, decoder = (
            replace(
                stack,
                architecture="marian",
                embedding_norm=False,
                learned_positions=0,
                sinusoidal_positions=True,
            )
            for stack in (config.encoder, config)
        )
        return replace(decoder, encoder=encoder)

"""mBART (arXiv 2001.08210): BART with norms before each branch and one after the last layer.

Networks trained here are saved in this layout; `length_classes`, `link_heads`,
`vertices_per_token` and `insertion_classes` in their config.json and the tensors `length_head`,
`link_head` and `edit_head` are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.bart import Bart
from anyorder.model.config import ModelConfig
from anyorder.model.fields import Fields
from anyorder.model.naming import BART_NAMES, NameMap


class Mbart(Architecture):
    """The language that it writes is the checkpoint's `forced_bos_token_id`."""

    model_types: ClassVar[tuple[str, ...]] = ("mbart",)
    prefixes: ClassVar[tuple[str, ...]] = Bart.prefixes
    names: ClassVar[NameMap] = BART_NAMES
    ignored: ClassVar[tuple[str, ...]] = Bart.ignored
    optional: ClassVar[tuple[str, ...]] = Bart.optional

    @classmethod
    def config(cls, fields: Fields) -> ModelConfig:
        config = Bart.config(fields)
        assert config.encoder is not None, "BART has an encoder"
        encoder, decoder = (
            replace(stack, architecture="mbart", norm_placement="before", final_norm=True)
            for stack in (config.encoder, config)
        )
        return replace(decoder, encoder=encoder)
